#!/usr/bin/env bash
# One cell of a grid, as an array task; submitted by adatad-ds slurm in the clone's folder:
#   job.sh GRID CONTAINER SRUN_OPTIONS
# Runs the grid's snapshot of the code, one task a rank. A warning signal goes on to the ranks; they save and leave, and
# this job is queued again; so it is where its time is up before they have. So it is after a node's crash. What failed is
# marked, and stays, as does what is queued again and again without a new checkpoint; what was cancelled is not queued
# again.
set -uo pipefail
QUEUED_IN_VAIN=5 # times without a new checkpoint, before this job gives up
asked=0 terminated=0 step=
trap 'asked=1; [[ -z $step ]] || kill -USR1 "$step" 2>/dev/null' USR1
trap terminated=1 TERM # Slurm tells the ranks itself, and decides what becomes of the job
grid=$1 container=$2 srun_options=$3
index=$SLURM_ARRAY_TASK_ID
# shellcheck disable=SC1091
source "$grid/code/slurm/site.env"
activate
export SLURM_EXPORT_ENV=ALL # what is set here is for the ranks; after `sbatch --export=NONE`, srun would keep it back
mapfile -t arguments <"$grid/cells/$index.args"
run=$(<"$grid/cells/$index.run")
mkdir -p "$run"
rm -f "$run/failed" "$run/interrupted"
((${SLURM_RESTART_COUNT:-0} > 0)) || rm -f "$run/queued_again"

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
cores=$(getconf _NPROCESSORS_ONLN)
OMP_NUM_THREADS=$((cores < SLURM_CPUS_PER_TASK ? cores : SLURM_CPUS_PER_TASK))
PYTHONPATH=$grid/code${PYTHONPATH:+:$PYTHONPATH} # the snapshot, whatever is installed
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS PYTHONPATH
if ((${SLURM_GPUS_ON_NODE:-0} > 0)); then unset DS_ACCELERATOR; else export DS_ACCELERATOR=cpu; fi # not the shell's
echo "cell $index, job $SLURM_JOB_ID (start ${SLURM_RESTART_COUNT:-0}) on $SLURM_JOB_NODELIST: ${arguments[*]}"
scontrol show job "$SLURM_JOB_ID" >>"$run/slurm_jobs.txt" # one entry a start

late() { # terminated for its time is up, rather than cancelled, or preempted and queued again by Slurm
    ((asked && terminated)) && scontrol show job "$SLURM_JOB_ID" | grep -q 'Reason=TimeLimit'
}

give_up() {
    echo "error: $1; slurm/again.sh submits it again" >&2
    echo 1 >"$run/failed"
    exit 1
}

queue_again() {
    local saved=("$run"/checkpoints/step_*) before='' times=0
    [[ ! -e $run/queued_again ]] || read -r times before <"$run/queued_again"
    [[ $before == "${saved[-1]##*/}" ]] || times=0
    ((times < QUEUED_IN_VAIN)) || give_up "$1, and the job was queued again $times times without a new checkpoint"
    echo "$((times + 1)) ${saved[-1]##*/}" >"$run/queued_again"
    echo "$1: queued again, to go on where it saved"
    scontrol requeue "$SLURM_JOB_ID" || give_up "Slurm does not queue it again"
    sleep 60 # until Slurm has taken this job down
    exit 1
}

((asked)) && queue_again "asked to stop before the start"
# shellcheck disable=SC2086 # of options and a command in front, each word counts
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" $srun_options \
    $container python -u "$grid/code/adatad_ds/train.py" "${arguments[@]}" &
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
