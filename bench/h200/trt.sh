#!/usr/bin/env bash
# INT8 on H100s or H200s by TensorRT 8.6.0, beside torch and onnxruntime: all that bar 3 asks for, in one unattended run.
# Usage: CUDA_VISIBLE_DEVICES=2,3 VIT_S=FOLDER setsid nohup bench/h200/trt.sh CARRY TRT WORK OUT [SECONDS] &
#   CARRY  what trt_carry.py made     TRT  where trt_pack.sh's parts were unpacked (runtime/, site/, ort/)
#   OUT    trt_CARD.json, trt_jetson.json, trt_logs.tgz; SECONDS (580) for all of it, the last TIMING=120 only for timing
# VIT_S: a trained ViT-S; the folder may come later, up to WAIT=240 s. BUILDERS=16 on each GPU. KEEP=FILE: an earlier
# result of the same card. PLACES="s32 ti32": only these. Progress: OUT/log.txt. kill -USR1 $(cat OUT/pid): time now what is built; kill -TERM: end now.
set -uo pipefail
[ -z "${KEEP:-}" ] || KEEP=$(realpath "$KEEP"); carry=$(realpath "$1"); trt=$(realpath "$2"); mkdir -p "$3" "$4"; work=$(realpath "$3"); out=$(realpath "$4"); seconds=${5:-580}
began=$(date +%s); cd "$(dirname "$0")/../.."; repo=$PWD
export PYTHONPATH="$repo:${PYTHONPATH:-}" PYTHONUNBUFFERED=1 CUDA_MODULE_LOADING=LAZY; python=${PYTHON:-python3}
# CUDA as torch brought it: its runtime is what the engines' process calls by ctypes, the rest is onnxruntime's
libraries() { $python -c 'import nvidia, os, sys; print(":".join(sorted({r for p in nvidia.__path__ for r, _, f in os.walk(p)
    if any(n.startswith(sys.argv[1]) and ".so" in n for n in f)})))' "$1" 2>/dev/null; }
nvidia=$(libraries libcudart):$(libraries libcupti); NVIDIA_LIBRARIES=$(libraries lib); export NVIDIA_LIBRARIES
export TRT_PYTHON=${TRT_PYTHON:-"env PYTHONHOME=$trt/runtime PYTHONPATH=$repo:$trt/site \
LD_LIBRARY_PATH=$trt/runtime/lib:$trt/runtime/stubs:$trt/site/tensorrt:$nvidia:${LD_LIBRARY_PATH:-} $trt/runtime/bin/python3.10"}
[ -d "$trt/ort" ] && export ORT_SITE=$trt/ort
rm -rf "$out"/{turn,rows,log,job,layers,kernels}.* "$out"/trt_* "${work:?}"/*; cp "$carry/frames.npz" "$work/"
$python -m bench.h200.trt "$work" "$out" --seconds $((seconds - 15)) --timing "${TIMING:-120}" --builders "${BUILDERS:-16}" \
    --wait "${WAIT:-240}" --carry "$carry" ${KEEP:+--keep "$KEEP"} ${PLACES:+--places $PLACES} > "$out/log.txt" 2>&1 & echo $! > "$out/pid"
trap 'kill -TERM $(cat "$out/pid") 2> /dev/null' TERM  # the shell itself stays, to pack
while kill -0 "$(cat "$out/pid")" 2> /dev/null; do wait "$(cat "$out/pid")"; done
tar czf "$work/trt_logs.tgz" -C "$out" . && mv "$work/trt_logs.tgz" "$out/"
echo "trt.sh: $(($(date +%s) - began)) s; in $out: $(cd "$out" && ls trt_*)" >> "$out/log.txt"; touch "$out/done"
