#!/usr/bin/env bash
# A first detector on a laptop's CPU: set up .venv, generate videos, train AdaTAD on 2 ranks with DeepSpeed ZeRO-2 for a
# few epochs, and show its detections in a video. `--full` trains it to the end, and then the same budget with a frozen
# backbone, for comparison. DS_CONFIG=ds_configs/zero3_offload.json trains as a model of 1 B parameters needs it: the
# losses are the same up to rounding, but gathering the weights of this one, of 18 MB, takes longer than it pays.
# `--features` extracts the frozen backbone's features once, and trains and evaluates a head on them.
set -euo pipefail
cd "$(dirname "$0")/.."
[[ $# == 0 || $* == --full || $* == --features ]] || {
    echo "usage: bash tools/quickstart.sh [--full | --features]" >&2
    exit 2
}
source tools/environment.sh requirements.txt

# Two ranks: on two GPUs where there are, on one GPU alone, else on the CPU's cores.
gpus=0
if compgen -G '/dev/nvidia[0-9]*' >/dev/null || [[ -e /dev/kfd || -e /dev/dxg ]]; then # else PyTorch need not be asked
    gpus=$(python -c 'from adatad_ds.system.launch import gpu_count; print(gpu_count())') # 0 with DS_ACCELERATOR=cpu
fi
ranks=${RANKS:-$((gpus == 1 ? 1 : 2))}
cores=$(getconf _NPROCESSORS_ONLN)
threads=$((cores > ranks ? cores / ranks : 1)) # of each rank
((gpus > 0)) || export DS_ACCELERATOR=cpu
ds_config=${DS_CONFIG:-ds_configs/zero2.json}

stage() {
    printf '\n=== %s\n' "$1"
    stage_began=$SECONDS
}
done_in() { printf -- '--- %s s\n' "$((SECONDS - stage_began))"; }

# Train a recipe in runs/FOLDER, with further arguments.
train() {
    local recipe=$1 folder=runs/$2
    stage "training: recipe $recipe, $ranks ranks, DeepSpeed with $ds_config"
    rm -rf "$folder"
    OMP_NUM_THREADS=$threads deepspeed --quiet --num_gpus "$ranks" adatad_ds/train.py \
        --deepspeed_config "$ds_config" --recipe "$recipe" --run-dir "$folder" "${@:3}"
    done_in
}

stage "videos with actions that differ in motion"
adatad-ds generate videos --out data/quickstart --train 160 --test 32 --seed 1 --workers "$cores"
done_in

if [[ $* == --features ]]; then
    stage "features of the frozen backbone, by $ranks processes"
    OMP_NUM_THREADS=$threads torchrun --standalone --nproc_per_node "$ranks" -m adatad_ds extract-features \
        --recipe quickstart_frozen --out data/quickstart/features
    done_in
    train quickstart_features quickstart_features
    python adatad_ds/evaluate.py runs/quickstart_features
    exit
fi

if [[ $* != --full ]]; then
    epochs=5 # of the recipe's 16, with more and smaller steps in each, and adapters in the upper blocks alone
    train quickstart quickstart_short --set "backbone.adapter_blocks=[3,4,5]" --set data.workers=1 \
        --set "train.schedule_epochs=$epochs" --set "train.stop_epoch=$epochs" --set "train.eval_from_epoch=$epochs" \
        --set "train.global_batch=$((ranks > 2 ? ranks : 2))" --set train.warmup_epochs=0.25
    stage "detections in a video that it has not seen"
    python adatad_ds/predict.py data/quickstart/videos/test_0000.mp4 --checkpoint runs/quickstart_short --html
    done_in
    cat <<'TEXT'

The picture and the page (open it in a browser) lie in predictions/. Next, after `source .venv/bin/activate`:
    bash tools/quickstart.sh --full     # to the end, and against a frozen backbone
    tensorboard --logdir runs
    adatad-ds --help                    # all commands; docs/guides/own_data.md: your own videos
TEXT
    exit
fi

train quickstart quickstart
train quickstart_frozen quickstart_frozen

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
