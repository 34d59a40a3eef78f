#!/usr/bin/env bash
# Makes what ships on one or two GPUs, in one sitting: wan-nano, its probes, three ViT-Ti students and a ViT-S.
# Usage: bench/h200/ship.sh PACK WORK      (PACK: vega3d scenes pack --licence all --out PACK)
# On two H200s with the defaults below: about 16 minutes; WORK/ship.log has the times. INIT=FOLDER goes on from an earlier
# wan-nano, whose VAE stays as it is (VAE_STEPS=0).
set -euo pipefail
pack=$(realpath "$1"); mkdir -p "$2"; work=$(realpath "$2"); cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD:${PYTHONPATH:-}" PYTHONUNBUFFERED=1 COLUMNS=100; python=${PYTHON:-python3}
second=$($python -c 'import torch; print(max(0, min(1, torch.cuda.device_count() - 1)))')
cp "${DISTILL:-bench/h200/distill.yaml}" "$work/distill.yaml"
$python -c "from records.environment import environment; from records.files import write_json; from pathlib import Path
write_json(environment(), Path('$work/env.json'))"
say() { echo "$SECONDS s: $*" >> "$work/ship.log"; }
stage() { $python bench/h200/stages.py "$1" "$work" "$pack" "${@:2}" > "$work/$1_${2:-}.log" 2>&1; }
run() { # NAME GPU OPTIONS…: one student with its teacher's heads and scores
    local run=$work/$1; mkdir -p "$run/cache" "$run/ship"
    ln -sfn "$work/clips" "$run/cache/clips"; ln -sfn "$work/features" "$run/ship/features"
    CUDA_VISIBLE_DEVICES=$2 TORCHDYNAMO_DISABLE=1 $python -m vega3d distill run --config "$work/distill.yaml" \
        --scenes.furniture "$pack" --teacher.generator "$work/wan-nano" --teacher.tap.block "$block" \
        --teacher.tap.k "$k" --runs "$run" --name ship "${@:3}" > "$run.log" 2>&1 || say "$1 failed"
}
pretrain() { # SECONDS for VAE and flow, then options
    CUDA_VISIBLE_DEVICES=0 $python -m vega3d teacher pretrain --furniture "$pack" ${INIT:+--init "$INIT"} \
        --vae-steps "${VAE_STEPS:-1000000}" --vae-crop 128 --flow-steps "${FLOW_STEPS:-1000000}" --flow-batch "${FLOW_BATCH:-128}" \
        --vae-batch "${VAE_BATCH:-32}" --ema 0.999 --vae-seconds "$1" --flow-seconds "$2" "${@:3}"
}

# rendering keeps the CPU busy first: meanwhile a few steps fill the compiler's cache
VAE_STEPS=$((${VAE_STEPS:-1} ? 4 : 0)) FLOW_STEPS=4 pretrain 0 0 --out "$work/warm" --clips 4 --rooms 4 --held-out 4 \
    --workers 0 --render-seed 9 > "$work/warm.log" 2>&1 & warm=$!
pretrain "${VAE_SECONDS:-310}" "${FLOW_SECONDS:-300}" --out "$work/wan-nano" --clips "${CLIPS:-10000}" \
    --rooms "${ROOMS:-5000}" --held-out "${HELD_OUT:-48}" \
    --render-seed "${RENDER_SEED:-1000}" --workers "${WORKERS:-22}" --save-every 2500 \
    > "$work/pretrain.log" 2>&1 & pretrained=$!
export CUDA_VISIBLE_DEVICES=$second  # the other GPU draws and probes
if GLCONTEXT_DEVICE_INDEX=$second $python -c 'from scenes.render import Renderer; print(Renderer(64).device)' \
    > "$work/egl.log" 2>&1; then export GLCONTEXT_DEVICE_INDEX=$second; fi
until [ -f "$work/wan-nano/test0.done" ] || ! kill -0 $pretrained 2> /dev/null; do sleep 0.5; done; say "clips rendered"
(stage rooms && touch "$work/rooms.done") & rooms=$!
stage probe video &
stage probe image & probe=$!
wait $warm $pretrained; say "generator trained"
wait $rooms; touch "$work/ready"
until [ -f "$work/tap" ] || ! kill -0 $probe 2> /dev/null; do sleep 0.2; done
[ -f "$work/tap" ] || { echo "6 300" > "$work/tap"; say "the probe failed: a tap of habit"; }
read -r block k < "$work/tap"; say "tap: block $block, k $k"
CUDA_VISIBLE_DEVICES=0 stage features 0 & half=$!; stage features 1; wait $half; touch "$work/features.done"; say "features"
run seed0 0 --seeds 0 & a=$!
run seed1 0 --seeds 1 & b=$!
run seed2 "$second" --seeds 2 & c=$!
run vit_s "$second" --seeds 0 --student.model.size s --teacher.controls & d=$!
wait $a $b $c; say "students"; touch "$work/students.done"; wait $d; say "ViT-S"; touch "$work/done"
wait; say "probes"
