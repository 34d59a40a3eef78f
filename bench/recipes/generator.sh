#!/usr/bin/env bash
# Trains wan-nano (teacher/weights/wan-nano) on a host with N GPUs, then searches its tap.
# Usage: bench/recipes/generator.sh PACK OUT     (PACK: vega3d scenes pack --licence all --out PACK)
# First the VAE and the transformer, then the transformer alone on other rooms: the steps of the
# shipped weights. Their batches are of all GPUs together. The second seed was not recorded.
set -euo pipefail
pack=$1 out=$2 gpus=${GPUS:-$(nvidia-smi -L | wc -l)}
pretrain() {
    accelerate launch --num_processes "$gpus" -m vega3d teacher pretrain --furniture "$pack" \
        --vae-crop 128 --vae-batch $((32 / gpus)) --flow-batch $((128 / gpus)) --ema 0.999 \
        --held-out 48 --save-every 2500 --workers "${WORKERS:-22}" "$@"
}
pretrain --out "$out/first" --rooms 5000 --clips 10000 --render-seed 1000 \
    --vae-steps 13827 --flow-steps 9668
pretrain --out "$out/wan-nano" --init "$out/first" --rooms 7000 --clips 14000 --render-seed 4000 \
    --vae-steps 0 --flow-steps 21702
python -m vega3d teacher search --generator "$out/wan-nano" --furniture "$pack" --clips 80 \
    --workers "${WORKERS:-22}" --out "$out/tap_search.json" --work "$out/search"
