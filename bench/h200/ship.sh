#!/usr/bin/env bash
# Makes what ships on one or two GPUs, in one sitting: wan-nano, its probes, three ViT-Ti students and their scores.
# Usage: bench/h200/ship.sh PACK WORK      (PACK: vega3d scenes pack --licence all --out PACK)
# The weights that ship were made by these stages on 2026-11-22 on two H200s, with the defaults below, in 9.4 minutes;
# the machine was lent by the minute, so the students of seeds 1 and 2 were stopped after about 14 of their 40 epochs.
set -euo pipefail
pack=$(realpath "$1"); mkdir -p "$2"; work=$(realpath "$2"); cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD:${PYTHONPATH:-}" PYTHONUNBUFFERED=1; python=${PYTHON:-python3}
second=$($python -c 'import torch; print(min(1, torch.cuda.device_count() - 1))')
stage() { $python bench/h200/stages.py "$1" "$work" "$pack" "${@:2}" > "$work/$1_${2:-}.log" 2>&1; }
export CUDA_VISIBLE_DEVICES=$second
stage rooms & rooms=$!
for mode in image video; do stage probe $mode & done

export CUDA_VISIBLE_DEVICES=0
$python -m vega3d teacher pretrain --out "$work/wan-nano" --furniture "$pack" --clips "${CLIPS:-7000}" \
    --rooms "${ROOMS:-3500}" --held-out 24 --workers "${WORKERS:-22}" --vae-steps 1000000 --vae-crop 128 \
    --vae-seconds "${VAE_SECONDS:-125}" --flow-steps 1000000 --flow-batch 128 --flow-seconds "${FLOW_SECONDS:-180}" \
    --ema 0.999 --save-every 2500
wait $rooms; touch "$work/ready"
until [ -f "$work/tap" ]; do sleep 0.5; done; read -r block k < "$work/tap"; echo "tap: block $block, k $k"
stage features 0 & half=$!; CUDA_VISIBLE_DEVICES=$second stage features 1; wait $half

pids=""
for seed in 0 1 2; do
    run=$work/seed$seed; mkdir -p "$run/cache" "$run/ship"
    ln -sfn "$work/clips" "$run/cache/clips"; ln -sfn "$work/features" "$run/ship/features"
    CUDA_VISIBLE_DEVICES=$((seed > 0 ? second : 0)) $python -m vega3d distill run --config bench/h200/distill.yaml \
        --scenes.furniture "$pack" --teacher.generator "$work/wan-nano" --teacher.tap.block "$block" \
        --teacher.tap.k "$k" --runs "$run" --name ship --seeds $seed > "$run.log" 2>&1 & pids="$pids $!"
done
for pid in $pids; do wait "$pid"; done
wait
