"""Every verb that imports a third party, under an empty home and an audit hook on sockets."""
import gzip
import os
import re
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import pytest

import vega3d
from export.web.vendor import STORED
from scenes.clip import SPLITS, save_clip
from tests.fakes import FakeRooms, save_tiny_text_encoder, save_tiny_wan
from tests.language_fakes import save_tiny_lm

ROOT = Path(vega3d.__file__).parent
# runs in the process itself and in every Python process it starts
SITECUSTOMIZE = '''
import os, sys

ADDRESSED = ("socket.connect", "socket.sendto")
NAMED = ("socket.getaddrinfo", "socket.gethostbyname")

def hook(event, args):
    if event in NAMED:
        host = args[0]
    elif event in ADDRESSED and isinstance(args[1], tuple):  # not a path: a socket of this machine
        host = args[1][0]
    else:
        return
    if host not in ("127.0.0.1", "::1", "localhost", b"localhost"):
        with open(os.environ["AUDIT_LOG"], "a") as file:
            print(event, repr(host), sys.argv, file=file)
        raise OSError(f"{event}: no network in this test")

sys.addaudithook(hook)
'''
VERBS = """
teacher prompt generator
distill run --runs runs --name tiny --scenes.path clips --teacher.generator generator --device cpu \
  --teacher.tap.block 0 --teacher.tap.seeds 1 --teacher.heads.epochs 1 --student.init scratch \
  --student.model.depth 1 --heads.steps 1 --heads.batch 2 --heads.init scratch
export onnx --run runs/tiny
export onnx --run runs/tiny --preset mobile
export check runs/tiny/export/model.int8.onnx
export web --run runs/tiny --out page
infer runs/tiny/export/mobile/onnx/model.onnx photo.png -o out
bench latency runs/tiny --out bench --rounds 1 --iterations 1 --warmup-seconds 0 --no-memory
bench latency runs/tiny/export/model.onnx --out bench/file --rounds 1 --iterations 1
bench accuracy --run runs/tiny --out bench
bench report --results bench/results.json
scenes show video.mp4
scenes render --n 10 --out rooms --workers 0 --frames 1
teacher train --clips rooms --frames 1 --features noise --grid 2 --out language --tuning.lm lm \
  --tuning.layers 1 --tuning.steps 1 --tuning.clips 1 --tuning.questions 1 --no-exam
export trt --run runs/tiny --target rtx --sm 89
teacher probe --generator generator --clips 2 --modes image --levels 300 --averaged 1 \
  --out probe.json
teacher pretrain --out pretrained --clips 2 --rooms 2 --held-out 2 --frames 5 --vae-steps 1 \
  --vae-batch 1 --vae-crop 32 --flow-steps 1 --flow-batch 1 --width 64 --depth 1 --align-block 0 \
  --workers 0
teacher search --generator generator --clips 2 --modes image --levels 300 --no-mlp --resamples 2 \
  --out search.json --work work
""".replace("\\\n", "").strip().splitlines()
# the one host that each may look up; pip may none here
FETCHES = {"teacher prompt nobody/nothing": "huggingface.co", "teacher prompt ./nothing": "",
           "teacher fetch": ""}
# onnxruntime-web is a stand-in: npm fetches it (tests/export/test_web.py)
RUN_VERBS = """
import sys, time, vega3d
from pathlib import Path
from export.web import vendor

vendor.runtime = lambda package: Path("ort")
for arguments in map(str.split, sys.argv[1:]):
    begin = time.process_time()
    vega3d.main(arguments)
    print("done", *arguments[:2], round(time.process_time() - begin, 1), flush=True)
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder, rooms = tmp_path_factory.mktemp("inputs"), FakeRooms(train=7, val=1, test=7)
    for split in SPLITS:
        for clip_id in rooms.ids(split):
            save_clip(rooms.clip(clip_id), folder / "clips" / f"{clip_id}.safetensors")
    save_tiny_text_encoder(save_tiny_wan(folder / "generator", blocks=1))
    save_tiny_lm(folder / "lm")
    (folder / "ort").mkdir()
    for name in STORED:
        (folder / "ort" / name).write_bytes(gzip.compress(b"") if name.endswith(".gz") else b"")
    frames = rooms.clip("train/000").frames.transpose(0, 2, 3, 1)
    iio.imwrite(folder / "photo.png", frames[0])
    iio.imwrite(folder / "video.mp4", [*frames] * 4, fps=10)
    return folder


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """A Python process whose home is folder/home, with the hook; what it saw is in folder/audit."""
    (folder / "home").mkdir(exist_ok=True)
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    env = {"PATH": os.environ["PATH"], "HOME": str(folder / "home"), "OMP_NUM_THREADS": "1",
           "AUDIT_LOG": str(folder / "audit"), "PYTHONDONTWRITEBYTECODE": "1",
           "PYTHONPATH": f"{folder / 'site'}{os.pathsep}{ROOT}", "PIP_NO_INDEX": "1"}
    return subprocess.run([sys.executable, *arguments], env=env, cwd=folder, text=True,
                          capture_output=True)


def test_no_verb_sends_anything_or_leaves_a_file_of_others_in_the_home_folder(inputs):
    done = python(inputs, "-c", RUN_VERBS, *VERBS)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.count("done ") == len(VERBS)
    assert not (inputs / "audit").exists(), (inputs / "audit").read_text()
    ours = inputs / "home" / ".cache" / "vega3d-edge"
    left = [path for path in (inputs / "home").rglob("*") if path.is_file()]
    assert left and all(path.is_relative_to(ours) for path in left), left


@pytest.mark.parametrize(("verb", "host"), FETCHES.items())
def test_only_a_hub_id_is_looked_up_and_once(tmp_path, verb, host):
    done = python(tmp_path, "-m", "vega3d", *verb.split())
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    seen = (tmp_path / "audit").read_text() if (tmp_path / "audit").exists() else ""
    assert seen.count("\n") == seen.count(f" {host!r} ") == bool(host), seen


def test_onnxruntime_nncf_and_openvino_are_imported_where_their_telemetry_is_off_alone():
    direct = {}
    for path in ROOT.rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        if name.partition("/")[0] in (*vega3d.COMMANDS, "student", "records", "examples"):
            lines = path.read_text().splitlines()
            found = [line.strip() for line in lines
                     if re.match(r"\s*(import|from) (onnxruntime|nncf|openvino)\b", line)]
            direct |= {name: found} if found else {}
    assert direct.pop("records/runtime.py") == ["import onnxruntime as ort"]
    example = (ROOT / "examples" / "geometry.py").read_text()
    assert direct.pop("examples/geometry.py") == ["import onnxruntime as ort"]
    assert example.index('"ORT_DISABLE_TELEMETRY", "1"') < example.index("import onnxruntime")
    assert "setenv(\"ORT_DISABLE_TELEMETRY\"" in (ROOT / "examples/cpp/geometry.cpp").read_text()
    quantize = (ROOT / "export" / "quant" / "int8.py").read_text()
    assert quantize.index("nncf = import_untracked(") < quantize.index("from nncf.")
    assert set(direct) == {"export/quant/int8.py"}


def test_the_hook_sees_a_name_that_is_looked_up_and_an_address_that_is_connected_to(tmp_path):
    code = ("import socket, subprocess, sys\n"
            "for call in (lambda: socket.getaddrinfo('example.org', 80),\n"
            "             lambda: socket.socket().connect(('192.0.2.1', 9))):\n"
            "    try: call()\n"
            "    except OSError: pass\n"
            "if len(sys.argv) == 1: subprocess.run([sys.executable, __file__, 'child'])")
    (tmp_path / "calls.py").write_text(code)
    python(tmp_path, str(tmp_path / "calls.py"))
    seen = (tmp_path / "audit").read_text().splitlines()
    assert [line.split()[0] for line in seen] == ["socket.getaddrinfo", "socket.connect"] * 2
