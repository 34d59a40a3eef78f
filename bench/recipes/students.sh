#!/usr/bin/env bash
# Distils wan-nano into three ViT-Ti (student/weights/vit-ti is seed 0) and, for the INT8 table, a
# ViT-S; then trains the heads that ship with seed 0. Scores: bench/results/rooms_accuracy.json.
# Usage: bench/recipes/students.sh PACK OUT [GENERATOR]     (PACK: as for generator.sh)
# On a host with N GPUs the later seeds train side by side; the first renders the rooms for all.
set -euo pipefail
pack=$1 out=$2 generator=${3:-wan-nano} gpus=${GPUS:-$(nvidia-smi -L | wc -l)}
distil() {  # NAME GPU OPTIONS...
    CUDA_VISIBLE_DEVICES=$2 python -m vega3d distill run --runs "$out" --name "$1" \
        --scenes.furniture "$pack" --scenes.train 3000 --scenes.test 200 --scenes.seed 3000 \
        --teacher.generator "$generator" --teacher.tap.block 5 --teacher.tap.k 500 \
        --teacher.heads.epochs 8 --teacher.heads.batch 128 --teacher.controls zeros noise rgb \
        --student.init scratch --student.epochs 33 --student.batch 256 --student.lr 1e-3 \
        --heads.steps 0 "${@:3}"
}
distil seed0 0 --seeds 0
for seed in 1 2; do distil "seed$seed" $((seed % gpus)) --seeds "$seed" & done
wait
distil vit_s 0 --seeds 0 --scenes.train 2000 --student.epochs 30 --student.model.size s
python -m vega3d distill heads --student "$out/seed0/student" --scenes.furniture "$pack" \
    --scenes.train 150 --scenes.test 40 --scenes.clips-per-room 1 --scenes.frames 9 \
    --heads.steps 450 --heads.init scratch
python -m vega3d bench accuracy --run "$out/seed0" --also "$out/seed1" "$out/seed2" \
    --out "$out/bench" --save rooms_accuracy
