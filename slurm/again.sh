#!/usr/bin/env bash
#SBATCH --job-name=again
#SBATCH --ntasks=1
#SBATCH --time=00:30:00
#SBATCH --output=slurm-%x-%j.out
# Submit cells of a grid again, with the grid's own code: those named, or all that failed. They go on where they were.
#   sbatch slurm/again.sh runs/GRID [CELL ...] [--dry-run]
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
source slurm/launch.sh
exec python -m adatad_ds slurm again "$@"
