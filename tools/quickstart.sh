#!/usr/bin/env bash
# The whole thing on a laptop's CPU: set up .venv, generate videos, train AdaTAD on 2 ranks with DeepSpeed ZeRO-3 and
# CPU offload, evaluate, draw the detections; then the same budget with a frozen backbone, for comparison.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh requirements.txt

# Two ranks: on two GPUs where there are, on one GPU alone, else on the CPU's cores.
gpus=$(python -c 'from adatad_ds.system.launch import gpu_count; print(gpu_count())') # none with DS_ACCELERATOR=cpu
ranks=${RANKS:-$((gpus == 1 ? 1 : 2))}
cores=$(getconf _NPROCESSORS_ONLN)
threads=$((cores > ranks ? cores / ranks : 1)) # of each rank
((gpus > 0)) || export DS_ACCELERATOR=cpu

stage() {
    printf '\n=== %s\n' "$1"
    stage_began=$SECONDS
}
done_in() { printf -- '--- %s s\n' "$((SECONDS - stage_began))"; }

stage "videos with actions that differ in motion"
adatad-ds generate videos --out data/quickstart --train 160 --test 32 --seed 1 --workers "$cores"
done_in

for recipe in quickstart quickstart_frozen; do
    stage "training: recipe $recipe, $ranks ranks, ZeRO-3 with CPU offload"
    rm -rf "runs/$recipe"
    OMP_NUM_THREADS=$threads deepspeed --quiet --num_gpus "$ranks" adatad_ds/train.py \
        --deepspeed_config ds_configs/zero3_offload.json --recipe "$recipe" --run-dir "runs/$recipe"
    done_in
done

stage "evaluation: detections, mAP table, picture"
python adatad_ds/evaluate.py runs/quickstart_frozen
python adatad_ds/evaluate.py runs/quickstart
done_in

adatad-ds compare runs/quickstart runs/quickstart_frozen
cat <<'TEXT'

Look at runs/quickstart/evaluate/detections.png; then, after `source .venv/bin/activate`,
    tensorboard --logdir runs
    python adatad_ds/predict.py data/quickstart/videos/test_0000.mp4 --checkpoint runs/quickstart --html
    python tools/ablate_aim.py      # the same in miniature for AIM: image transformers, recognition
TEXT
