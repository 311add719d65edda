#!/usr/bin/env bash
#SBATCH --job-name=scale-models
#SBATCH --ntasks=1
#SBATCH --time=00:30:00
#SBATCH --output=slurm-%x-%j.out
# Model sizes at fixed frames: the grid of slurm/models.json as a job array. Overrides:
#   RECIPES="thumos14_videomae_s thumos14_videomae_b" FRAMES=768 sbatch slurm/scale_models.sh
# This small job (or `bash slurm/scale_models.sh` on a login node) checks everything, takes a snapshot of the code and
# submits the cells. --dry-run prints what it would submit. slurm/again.sh submits what failed again.
set -euo pipefail
clone=$(dirname "$0")/..
[[ -e $clone/slurm/launch.sh ]] || clone=${SLURM_SUBMIT_DIR:-.} # sbatch runs a copy of this script
cd "$clone"
[[ -e slurm/launch.sh ]] || { echo "error: submit in the clone's folder (here: $PWD)" >&2 && exit 2; }
source slurm/launch.sh
exec python -m adatad_ds slurm grid slurm/models.json "$@"
