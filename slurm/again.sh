#!/usr/bin/env bash
#SBATCH --job-name=again
#SBATCH --ntasks=1
#SBATCH --time=00:30:00
#SBATCH --output=slurm-%x-%j.out
# Submit cells of a grid again, with the grid's own code: those named, or all that failed. They go on where they were.
#   sbatch slurm/again.sh runs/GRID [CELL ...] [--dry-run]
set -euo pipefail
clone=$(dirname "$0")/..
[[ -e $clone/slurm/launch.sh ]] || clone=${SLURM_SUBMIT_DIR:-.} # sbatch runs a copy of this script
cd "$clone"
[[ -e slurm/launch.sh ]] || { echo "error: submit in the clone's folder (here: $PWD)" >&2 && exit 2; }
source slurm/launch.sh
exec python -m adatad_ds slurm again "$@"
