#!/usr/bin/env bash
#SBATCH --job-name=adatad-submit
#SBATCH --ntasks=1
#SBATCH --time=00:30:00
#SBATCH --output=slurm-%x-%j.out
# Train one recipe on any number of nodes:
#   NODES=2 sbatch slurm/train.sh --name my_run --recipe thumos14_videomaev2_g_1536 --set parallel.temporal=8
# This small job (or `bash slurm/train.sh ...` on a login node) checks the settings, takes a snapshot of the code and
# submits the real one. --dry-run prints what it would submit.
set -euo pipefail
clone=$(dirname "$0")/..
[[ -e $clone/slurm/launch.sh ]] || clone=${SLURM_SUBMIT_DIR:-.} # sbatch runs a copy of this script
cd "$clone"
[[ -e slurm/launch.sh ]] || { echo "error: submit in the clone's folder (here: $PWD)" >&2 && exit 2; }
source slurm/launch.sh
exec python -m adatad_ds slurm run "$@"
