# shellcheck shell=bash disable=SC1091
# Sourced in the clone by what submits: site settings into the environment, python with our packages.
[[ ${SLURM_EXPORT_ENV:-ALL} == ALL* ]] ||
    echo "warning: sbatch kept this shell's environment back (--export=$SLURM_EXPORT_ENV, perhaps by SBATCH_EXPORT)," \
        "settings in it included; sbatch --export=ALL takes them along, bash in place of sbatch needs no --export" >&2
given=$(compgen -e | tr '\n' ' ')
export SETTINGS_GIVEN=$given # rather than by site.env: adatad-ds slurm again tells them apart
set -a
source slurm/site.env
set +a
activate || {
    echo "error: no python environment: run 'bash tools/environment.sh requirements.txt' in the clone," \
        "or change activate() in slurm/site.env" >&2
    exit 2
}
# What this small job was given, and what holds on a login node, must not leak into the jobs that it submits.
unset CUDA_VISIBLE_DEVICES
while read -r name; do unset "$name"; done < <(compgen -v | grep -E '^(SLURM|SBATCH)_(JOB|CPU|MEM|NTASKS|NNODES|NPROCS|TASK|STEP|TRES|GPU)' || true)
