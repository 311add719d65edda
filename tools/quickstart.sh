#!/usr/bin/env bash
# A first detector on a laptop's CPU: set up .venv, generate videos, train AdaTAD on 2 ranks with DeepSpeed ZeRO-2 for a
# few epochs, and show its detections in a video. `--full` trains longer, with adapters in all blocks, and then a head
# alone, on the frozen backbone's features, for as many epochs. DS_CONFIG=ds_configs/zero3_offload.json trains as a
# model of 1 B parameters needs it: the losses are the same up to rounding, but gathering the weights of this one, of
# 18 MB, takes longer than it pays. `--features` extracts the frozen backbone's features once, and trains and evaluates
# a head on them.
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
workers=$((cores > ranks)) # decoding processes of each rank: none where they would take the ranks' own cores
((gpus > 0)) || export DS_ACCELERATOR=cpu
ds_config=${DS_CONFIG:-ds_configs/zero2.json}

stage() {
    printf '\n=== %s\n' "$1"
    stage_began=$SECONDS
}
done_in() { printf -- '--- %s s\n' "$((SECONDS - stage_began))"; }

# Set `budget`: fewer epochs than the recipe's 16, with smaller steps.
train_for() {
    local epochs=$1 warmup_epochs=$2
    budget=(--set "train.schedule_epochs=$epochs" --set "train.stop_epoch=$epochs" --set "train.eval_from_epoch=$epochs"
        --set "train.warmup_epochs=$warmup_epochs" --set "train.global_batch=$((ranks > 2 ? ranks : 2))")
}

# Train a recipe in runs/FOLDER, with further arguments.
train() {
    local recipe=$1 folder=runs/$2
    stage "training: recipe $recipe, $ranks ranks, DeepSpeed with $ds_config"
    rm -rf "$folder"
    OMP_NUM_THREADS=$threads deepspeed --quiet --num_gpus "$ranks" adatad_ds/train.py \
        --deepspeed_config "$ds_config" --recipe "$recipe" --run-dir "$folder" --set "data.workers=$workers" "${@:3}"
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
    train_for 5 0.25
    train quickstart quickstart_short "${budget[@]}" --set "backbone.adapter_blocks=[3,4,5]" # the upper ones alone
    trained=quickstart_short
else
    train_for 16 0.5
    train quickstart quickstart "${budget[@]}"
    # A frozen backbone's features are made once, so all epochs see the same crop.
    train quickstart_frozen quickstart_frozen "${budget[@]}" --set backbone.cache_features=true \
        --set data.short_side_before_crop=64
    trained=quickstart
fi

stage "detections in a video that it has not seen"
python adatad_ds/predict.py data/quickstart/videos/test_0000.mp4 --checkpoint "runs/$trained" --html
done_in

if [[ $* != --full ]]; then
    cat <<'TEXT'

The picture and the page (open it in a browser) are in predictions/. Next, after `source .venv/bin/activate`:
    bash tools/quickstart.sh --full     # train to the end, and compare with a frozen backbone
    tensorboard --logdir runs
    adatad-ds --help                    # all commands; docs/guides/own_data.md: your own videos
TEXT
    exit
fi
adatad-ds compare runs/quickstart runs/quickstart_frozen
cat <<'TEXT'

The picture and the page (open it in a browser) are in predictions/. Next, after `source .venv/bin/activate`:
    adatad-ds evaluate runs/quickstart && adatad-ds report runs/quickstart  # curves, errors, videos on a page
    tensorboard --logdir runs
    python tools/ablate_aim.py  # the same in miniature for AIM: image transformers, recognition
TEXT
