#!/usr/bin/env bash
# INT8 on the H200 by TensorRT 8.6.0, beside torch and onnxruntime: everything bar 3 asks for, in one unattended run.
# Usage: bench/h200/trt.sh CARRY TRT WORK OUT [SECONDS]
#   CARRY  what trt_carry.py made     TRT  where trt_pack.sh's archive was unpacked (runtime/, site/, ort/)
#   OUT    trt_h200.json, trt_jetson.json and logs; SECONDS (400) for all of it. VIT_S=FOLDER: a trained ViT-S.
# KEEP=FILE: an earlier trt_h200.json, whose whole jobs are not repeated.
# CUDA_VISIBLE_DEVICES=0,1 takes both; BUILDERS=3 on each. The Jetson file runs after it, alone, if JETSON=170 s are left.
set -uo pipefail
[ -z "${KEEP:-}" ] || KEEP=$(realpath "$KEEP"); carry=$(realpath "$1"); trt=$(realpath "$2"); mkdir -p "$3" "$4"; work=$(realpath "$3"); out=$(realpath "$4"); seconds=${5:-400}
began=$(date +%s); cd "$(dirname "$0")/../.."; repo=$PWD
export PYTHONPATH="$repo:${PYTHONPATH:-}" PYTHONUNBUFFERED=1 CUDA_MODULE_LOADING=LAZY; python=${PYTHON:-python3}
# CUDA as torch brought it: its runtime is what the engines' process calls by ctypes, the rest is onnxruntime's
libraries() { $python -c 'import nvidia, os, sys; print(":".join(sorted({r for p in nvidia.__path__ for r, _, f in os.walk(p)
    if any(n.startswith(sys.argv[1]) and ".so" in n for n in f)})))' "$1" 2>/dev/null; }
nvidia=$(libraries libcudart); NVIDIA_LIBRARIES=$(libraries lib); export NVIDIA_LIBRARIES
export TRT_PYTHON=${TRT_PYTHON:-"env PYTHONHOME=$trt/runtime PYTHONPATH=$repo:$trt/site \
LD_LIBRARY_PATH=$trt/runtime/lib:$trt/runtime/stubs:$trt/site/tensorrt:$nvidia:${LD_LIBRARY_PATH:-} $trt/runtime/bin/python3.10"}
[ -d "$trt/ort" ] && export ORT_SITE=$trt/ort
rm -rf "$out"/{turn,rows,log,layers}.* "$work"/*; cp "$carry/frames.npz" "$work/"
$python -m bench.h200.trt "$work" "$out" --seconds $((seconds - 15)) --builders "${BUILDERS:-3}" ${KEEP:+--keep "$KEEP"} 2>&1 | tee "$out/log.txt"
left=$((began + seconds - $(date +%s)))
if [ $left -ge "${JETSON:-170}" ]; then  # FP16 alone took 55 s there
    ($python -m bench.h200.trt_jetson "$carry" "$work" "$work/jetson" && cd "$work/jetson" &&
     timeout $left $TRT_PYTHON run_on_jetson.py --own-kernels --seconds 1) > "$out/log.jetson.txt" 2>&1
    cp "$work/jetson/result.json" "$out/trt_jetson.json" 2>/dev/null
fi
tar czf "$work/trt_logs.tgz" -C "$out" . && mv "$work/trt_logs.tgz" "$out/"
echo "trt.sh: $(($(date +%s) - began)) s; $out/trt_h200.json"
