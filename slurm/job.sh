#!/usr/bin/env bash
# One cell of a grid, as a job or an array task; submitted by tools/submit.py in the clone's folder:
#   job.sh GRID [INDEX]
# Runs the grid's snapshot of the code, one task a rank. A warning signal goes on to the ranks; they save and leave, and
# this job is queued again. So it is after a node's crash, by Slurm itself. What failed is marked, and stays.
set -uo pipefail
grid=$1
index=${SLURM_ARRAY_TASK_ID:-${2:-0}}
set -a
# shellcheck disable=SC1091
source "$grid/code/slurm/site.env"
set +a
activate
mapfile -t arguments <"$grid/cells/$index.args"
run=$(<"$grid/cells/$index.run")
mkdir -p "$run"
rm -f "$run/failed"

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS=$CPUS_PER_RANK
((GPUS_PER_NODE > 0)) || export DS_ACCELERATOR=cpu
echo "cell $index, job $SLURM_JOB_ID (start ${SLURM_RESTART_COUNT:-0}) on $SLURM_JOB_NODELIST: ${arguments[*]}"

srun --kill-on-bad-exit=1 --cpus-per-task="$CPUS_PER_RANK" \
    python -u "$grid/code/adatad_ds/train.py" "${arguments[@]}" --run-dir "$run" --resume auto &
step=$!
trap 'kill -USR1 "$step"' USR1 TERM
while :; do
    wait "$step"
    code=$?
    kill -0 "$step" 2>/dev/null || break # a trapped signal ends `wait`, too
done

if [[ -e $run/interrupted ]]; then
    echo "asked to stop: queued again, to go on where it saved"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60 # until Slurm has taken this job down
elif ((code != 0)); then
    if ! timeout 90 srun --overlap --ntasks-per-node=1 --ntasks="$SLURM_JOB_NUM_NODES" --cpus-per-task=1 true; then
        echo "a node is gone: queued again, to go on from the last checkpoint"
        scontrol requeue "$SLURM_JOB_ID"
        sleep 60
    fi
    echo "$code" >"$run/failed"
fi
exit "$code"
