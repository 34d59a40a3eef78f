#!/usr/bin/env bash
# TensorRT 8.6.0 with its own CPython 3.10, and onnxruntime-gpu for Python 3.12, packed to travel to the GPU machine.
# Usage: trt_pack.sh PARTS OUT [BYTES]   (PARTS: what shared/tools/portable_trt86/pack.sh made; BYTES a part, 58000000)
# About 20 minutes on one core. There:  mkdir -p TRT && cat OUT/trt_?? | xz -dT0 | tar x -C TRT    (1.6 GB)
# TensorRT's libraries travel whole: it checks a digest of its kernel library when a builder is made ("Assertion
# validateCaskKLibDigest failed" with other architectures' kernels emptied). onnxruntime's need only SM 90: trt_slim.py.
set -euo pipefail
parts=$(realpath "$1"); mkdir -p "$2"; out=$(realpath "$2"); size=${3:-58000000}; here=$(realpath "$(dirname "$0")")
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
cat "$parts"/part_?? > trt.whl; python3 -m zipfile -e trt.whl site; rm trt.whl
pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --abi cp312 \
    --platform manylinux_2_28_x86_64 -d . onnxruntime-gpu==1.31.1
python3 -m zipfile -e onnxruntime_gpu-*.whl ort
(cd ort/onnxruntime; rm -rf tools transformers quantization datasets capi/libonnxruntime.so* capi/libonnxruntime_*_tensorrt.so)
python3 "$here/trt_slim.py" 90 ort/onnxruntime/capi/*cuda.so
tar xJf "$parts/runtime.tar.xz"
# in blocks, so that there every core unpacks (xz does so only for what several threads have packed)
tar c site ort runtime | xz -T"${THREADS:-2}" -6 --block-size=64MiB | split -b "$size" -d - "$out/trt_"; ls -l "$out"
