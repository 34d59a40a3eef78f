#!/usr/bin/env bash
# TensorRT 8.6.0 with its own CPython 3.10, and onnxruntime-gpu for Python 3.12, packed to travel to the GPU machine.
# Usage: trt_pack.sh PARTS OUT [BYTES]   (PARTS: what shared/tools/portable_trt86/pack.sh made; BYTES a part, 50000000)
# There:  mkdir -p TRT/site TRT/ort; for d in site ort; do cat OUT/${d}_?? | tar xJ -C TRT/$d; done
#         tar xJf OUT/runtime.tar.xz -C TRT
# TensorRT's libraries travel whole: it checks a digest of its kernel library when a builder is made ("Assertion
# validateCaskKLibDigest failed" with other architectures' kernels emptied). onnxruntime's need only SM 90: trt_slim.py.
set -euo pipefail
parts=$(realpath "$1"); mkdir -p "$2"; out=$(realpath "$2"); size=${3:-50000000}; here=$(realpath "$(dirname "$0")")
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
cat "$parts"/part_?? > trt.whl; python3 -m zipfile -e trt.whl site; rm trt.whl
pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --abi cp312 \
    --platform manylinux_2_28_x86_64 -d . onnxruntime-gpu==1.31.1
python3 -m zipfile -e onnxruntime_gpu-*.whl ort
(cd ort/onnxruntime; rm -rf tools transformers quantization datasets capi/libonnxruntime.so* capi/libonnxruntime_*_tensorrt.so)
python3 "$here/trt_slim.py" 90 ort/onnxruntime/capi/*cuda.so
for d in site ort; do tar c -C $d . | xz -T"${THREADS:-1}" -6 | split -b "$size" -d - "$out/${d}_"; done
cp "$parts/runtime.tar.xz" "$out/"; ls -l "$out"
