#!/usr/bin/env bash
# Latency, memory and energy of a run's student and teacher on one GPU, and the check of its clock.
# Usage: bench/recipes/gpu_latency.sh RUN OUT      (RUN: a run folder, as by students.sh)
# OUT/results.json holds the rows of bench/results/latency_h200.json, OUT/timer.json those of
# timer_h200.json; that run timed the eager launch of the generator in FP32 only.
set -euo pipefail
run=$1 out=$2
python -m vega3d bench latency "$run" --out "$out" --backends torch,compile --no-memory \
    --teacher-precision fp32 bf16 --seconds 3 --iterations 200 --rounds 5 --warmup-seconds 0.1
python -m bench.latency.clock_calibration --gpu "$out/timer.json"
