#!/usr/bin/env bash
# Trains wan-nano with the settings of the shipped one (teacher/weights/wan-nano) on a host with N
# GPUs, then searches its tap.
# Usage: bench/recipes/generator.sh PACK OUT     (PACK: vega3d scenes pack --licence all --out PACK)
# First the VAE alone, then the transformer on other rooms, 16 minutes of one H100. The steps are
# those that fitted the seconds of the shipped runs; batches are of all GPUs together. The shipped
# transformer holds its first 7 blocks only, up to its tap.
set -euo pipefail
pack=$1 out=$2 gpus=${GPUS:-$(nvidia-smi -L | wc -l)} workers=${WORKERS:-22}
pretrain() {
    accelerate launch --num_processes "$gpus" -m vega3d teacher pretrain --furniture "$pack" \
        --held-out 48 --workers "$workers" "$@"
}
pretrain --out "$out/vae" --rooms 5000 --clips 10000 --render-seed 1000 --vae-steps 13827 \
    --vae-batch $((32 / gpus)) --vae-crop 128 --flow-steps 1 --flow-batch 1 --save-every 2500
rm -r "$out/vae/transformer"  # of one step: the next run starts from the VAE alone
pretrain --out "$out/wan-nano" --init "$out/vae" --rooms 8000 --clips 24000 --render-seed 7000 \
    --frames 5 --vae-steps 0 --flow-steps 19762 --flow-batch $((128 / gpus)) --width 384 \
    --depth 12 --align efficientnet-lite0 --align-block 6 --t-focus 0.7 --save-every 5000
python -m vega3d teacher search --generator "$out/wan-nano" --furniture "$pack" --clips 80 \
    --workers "$workers" --out "$out/tap_search.json" --work "$out/search"
