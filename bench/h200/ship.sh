#!/usr/bin/env bash
# Makes everything that ships, on one or two GPUs: wan-nano, its probe table, the ViT-Ti student, the accuracy table.
# Usage: ship.sh FURNITURE_PACK OUT      (pack: vega3d scenes pack --licence all). Re-running goes on where it stopped.
# Environment: CLIPS VAE_STEPS FLOW_STEPS PYTHON
set -euo pipefail
pack=$(realpath "$1"); out=$(realpath -m "$2"); cd "$(dirname "$0")/../.."; mkdir -p "$out"
python=${PYTHON:-python3}; gpus=$($python -c 'import torch; print(torch.cuda.device_count())')
second=$((gpus > 1 ? 1 : 0)); vega3d="$python -m vega3d"
say() { echo "== $(date +%T) $*"; }

say "rendering the distillation rooms beside the pre-training"
prepare="import sys; sys.path.insert(0, '.')
from dataclasses import replace; from pathlib import Path
from distill.clips import open_source; from distill.config import load_config
if __name__ == '__main__':
    scenes = load_config(Path('bench/h200/distill.yaml')).scenes
    open_source(replace(scenes, furniture=Path('$pack'), workers=${ROOM_WORKERS:-8}), Path('$out/a/cache/clips'), True)"
echo "$prepare" > "$out/prepare.py"; (PYTHONPATH="$PWD:${PYTHONPATH:-}" $python "$out/prepare.py" > "$out/prepare.log" 2>&1) &

say "pre-training on $gpus GPU(s)"
$python -m torch.distributed.run --nproc_per_node "$gpus" -m vega3d teacher pretrain --out "$out/wan-nano" \
    --furniture "$pack" --clips "${CLIPS:-16000}" --rooms 4000 --held-out 48 --frames 9 --workers 14 \
    --vae-steps "${VAE_STEPS:-3000}" --vae-batch 32 --vae-crop 128 --vae-lr 1e-3 \
    --flow-steps "${FLOW_STEPS:-8000}" --flow-batch 192 --flow-lr 1e-3 --ema 0.999
wait

say "probes"
for mode in image video; do
    CUDA_VISIBLE_DEVICES=$([ $mode = image ] && echo 0 || echo $second) $vega3d teacher probe --furniture "$pack" \
        --generator "$out/wan-nano" --modes $mode --out "$out/probe_$mode.json" &
    [ "$gpus" -gt 1 ] || wait
done; wait
$python - "$out" <<'PICK'
import json, sys
rows = json.load(open(f"{sys.argv[1]}/probe_image.json"))["rows"]
best = max((r for r in rows if r["features"].startswith("generator") and r["seeds"] == 1 and 0.05 < r["t"] < 0.9),
           key=lambda r: r["depth_r2_mlp"] + r["normal_cos"])
open(f"{sys.argv[1]}/tap", "w").write(f"{best['block']} {round(1000 * best['t'])}")
print("tap:", best)
PICK
read -r block k < "$out/tap"

say "distillation at block $block, k $k"
mkdir -p "$out/b/cache"; ln -sfn "$out/a/cache/clips" "$out/b/cache/clips"
common="--config bench/h200/distill.yaml --scenes.furniture $pack --teacher.generator $out/wan-nano
    --teacher.tap.block $block --teacher.tap.k $k"
CUDA_VISIBLE_DEVICES=0 $vega3d distill run $common --runs "$out/a" --name ship --seeds 0 1 > "$out/distill_a.log" 2>&1 &
[ "$gpus" -gt 1 ] || wait
CUDA_VISIBLE_DEVICES=$second $vega3d distill run $common --runs "$out/b" --name ship --seeds 2 > "$out/distill_b.log" 2>&1 &
wait
say "done"
