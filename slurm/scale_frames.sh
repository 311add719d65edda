#!/usr/bin/env bash
#SBATCH --job-name=scale-frames
#SBATCH --ntasks=1
#SBATCH --time=00:30:00
#SBATCH --output=slurm-%x-%j.out
# Frames x resolution for one model: the grid of slurm/frames.json as a job array. Overrides:
#   FRAMES="768 1536" RESOLUTIONS=160 RECIPE=thumos14_videomae_b sbatch slurm/scale_frames.sh
# This small job (or `bash slurm/scale_frames.sh` on a login node) checks everything, takes a snapshot of the code and
# submits the cells. --dry-run prints what it would submit. slurm/again.sh submits what failed again.
set -euo pipefail
clone=$(dirname "$0")/..
[[ -e $clone/slurm/launch.sh ]] || clone=${SLURM_SUBMIT_DIR:-.} # sbatch runs a copy of this script
cd "$clone"
[[ -e slurm/launch.sh ]] || { echo "error: submit in the clone's folder (here: $PWD)" >&2 && exit 2; }
source slurm/launch.sh
exec python -m adatad_ds slurm grid slurm/frames.json "$@"
