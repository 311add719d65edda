#!/usr/bin/env bash
# One cell of a grid, as an array task; submitted by adatad-ds slurm in the clone's folder: job.sh GRID
# Runs the grid's snapshot of the code, one task a rank. A warning signal goes on to the ranks; they save and leave, and
# this job is queued again; so it is where its time is up before they have. So it is after a node's crash. What failed is
# marked, and stays; what was cancelled is not queued again.
set -uo pipefail
asked=0 terminated=0 step=
trap 'asked=1; [[ -z $step ]] || kill -USR1 "$step" 2>/dev/null' USR1
trap terminated=1 TERM # Slurm tells the ranks itself, and decides what becomes of the job
grid=$1
index=$SLURM_ARRAY_TASK_ID
# shellcheck disable=SC1091
source "$grid/code/slurm/site.env"
activate
mapfile -t arguments <"$grid/cells/$index.args"
run=$(<"$grid/cells/$index.run")
mkdir -p "$run"
rm -f "$run/failed" "$run/interrupted"

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
cores=$(getconf _NPROCESSORS_ONLN)
OMP_NUM_THREADS=$((cores < SLURM_CPUS_PER_TASK ? cores : SLURM_CPUS_PER_TASK))
PYTHONPATH=$grid/code${PYTHONPATH:+:$PYTHONPATH} # the snapshot, whatever is installed
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS PYTHONPATH
((${SLURM_GPUS_ON_NODE:-0} > 0)) || export DS_ACCELERATOR=cpu
echo "cell $index, job $SLURM_JOB_ID (start ${SLURM_RESTART_COUNT:-0}) on $SLURM_JOB_NODELIST: ${arguments[*]}"
scontrol show job "$SLURM_JOB_ID" >>"$run/slurm_jobs.txt" # one entry a start

late() { # terminated for its time is up, rather than cancelled, or preempted and queued again by Slurm
    ((asked && terminated)) && scontrol show job "$SLURM_JOB_ID" | grep -q 'Reason=TimeLimit'
}

queue_again() {
    echo "$1: queued again, to go on where it saved"
    scontrol requeue "$SLURM_JOB_ID" || {
        echo "error: Slurm does not queue it again; slurm/again.sh does" >&2
        exit 1
    }
    sleep 60 # until Slurm has taken this job down
    exit 1
}

((asked)) && queue_again "asked to stop before the start"
# shellcheck disable=SC2086 # of options and a command in front, each word counts
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" $SRUN_OPTIONS \
    $CONTAINER python -u "$grid/code/adatad_ds/train.py" "${arguments[@]}" &
step=$!
while :; do
    wait "$step"
    code=$?
    late && queue_again "asked to stop, and its time is up" # now, for Slurm will kill this script with the ranks
    kill -0 "$step" 2>/dev/null || break # a trapped signal ends `wait`, too
done

((terminated)) && exit "$code"
if [[ -e $run/interrupted ]] || ((asked && code != 0)); then # before the ranks listen, the signal ends them
    queue_again "asked to stop"
fi
if ((code != 0)); then
    timeout 90 srun --overlap --ntasks-per-node=1 --ntasks="$SLURM_JOB_NUM_NODES" --cpus-per-task=1 true ||
        ((terminated)) || queue_again "a node is gone"
    echo "$code" >"$run/failed"
fi
exit "$code"
