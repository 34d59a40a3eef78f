#!/usr/bin/env bash
# Distils wan-nano into three ViT-Ti and a ViT-S, each with its heads; seed 0 and the ViT-S as they
# ship: OUT/weights. Scores: bench/results/rooms_accuracy.json.
# Usage: bench/recipes/students.sh PACK OUT [GENERATOR [OPTIONS...]]     (PACK: as for generator.sh;
# OPTIONS: of `vega3d distill run`, for all). The first run renders the rooms and extracts the
# features, 20 GB, for all; on a host with N GPUs the others then train side by side.
set -euo pipefail
pack=$1 out=$2 generator=${3:-wan-nano} gpus=${GPUS:-$(nvidia-smi -L | wc -l)} started=0
distil() {  # NAME OPTIONS...
    CUDA_VISIBLE_DEVICES=$((started % gpus)) python -m vega3d distill run --runs "$out" \
        --name "$1" --scenes.furniture "$pack" --scenes.style mixed --scenes.train 10000 \
        --scenes.test 200 --scenes.seed 3000 --teacher.generator "$generator" \
        --teacher.heads.epochs 1 --teacher.heads.batch 128 --teacher.controls zeros noise rgb \
        --student.init scratch --student.epochs 7 --student.batch 256 --student.lr 1e-3 \
        --student.augment photometric --heads.steps 2500 --heads.batch 64 --heads.init scratch \
        --heads.student-lr 0.3 --heads.feature-weight 4 "${@:2}"
}
distil seed0 --seeds 0 "${@:4}"
vit_s="--student.model.size s --student.lr 7e-4 --student.epochs 5 --heads.steps 1500"
for run in "seed1 --seeds 1" "seed2 --seeds 2" "vit_s --teacher.controls zeros $vit_s"; do
    distil $run --features "$out/seed0/features" "${@:4}" &
    ((++started % gpus)) || wait
done
wait
for name in seed0 vit_s; do python -m bench.recipes.ship_student "$out/$name" "$out/weights"; done
python -m vega3d bench accuracy --run "$out/seed0" --also "$out/seed1" "$out/seed2" \
    --out "$out/bench" --save rooms_accuracy
