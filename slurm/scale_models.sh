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
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
source slurm/launch.sh
exec python -m adatad_ds slurm grid slurm/models.json "$@"
