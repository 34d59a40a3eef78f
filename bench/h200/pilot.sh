#!/usr/bin/env bash
# Which settings the language teacher's tables are made with: a few trainings of each candidate, scored on the rooms of
# the split val, which no table uses.  Usage: bench/h200/pilot.sh WORK SECONDS [OPTIONS of all]
# after  ONLY=prepare bench/h200/questions.sh PACK WORK 0
# VARIANTS: a file of lines  NAME GPU OPTIONS of language.py train.  WORK/pilot/NAME/rooms_questions.json are the answers.
set -euo pipefail
work=$(realpath "$1"); seconds=$2; variants=$(realpath "${VARIANTS:-$(dirname "$0")/pilot.txt}"); cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD:${PYTHONPATH:-}" PYTHONUNBUFFERED=1; python=${PYTHON:-python3}
clips=$(echo "$work"/clips/rooms-*); read -r block k < "$work/tap"
while read -r name gpu options; do
    [ -n "$name" ] || continue
    mkdir -p "$work/pilot/$name/language"
    ln -sf "$work"/language/{*_train.safetensors,guesses.json} "$work/pilot/$name/language/"
    for file in "$work"/language/*_val.safetensors; do
        scored=$(basename "${file/_val/_test}"); ln -sf "$file" "$work/pilot/$name/language/$scored"
    done
    CUDA_VISIBLE_DEVICES=$gpu $python bench/h200/language.py train "$work/pilot/$name" --clips "$clips" --features "$work/features" \
        --generator "$work/wan-nano" --block "$block" --k "$k" --positions pose_free --seeds 0 --seconds "$seconds" $options "${@:3}" \
        > "$work/pilot/$name.log" 2>&1 < /dev/null &
done < "$variants"
wait
