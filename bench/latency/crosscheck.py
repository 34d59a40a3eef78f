"""The same file under another's clock: NVIDIA's trtexec for engines, polygraphy for ONNX files,
where installed."""
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bench.artefacts import Artefact, absent
from records.results import Row

ITERATIONS = 200
SECONDS = 300  # before a tool is given up
_POLYGRAPHY = """
import sys
import numpy as np, onnxruntime as ort
from polygraphy.backend.onnxrt import OnnxrtRunner
options = ort.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads = int(sys.argv[2]), 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
given = session.get_inputs()[0]
shape = [side if isinstance(side, int) else usual for side, usual in zip(given.shape, (1, 3, 224, 224))]
feed = {given.name: np.random.default_rng(0).random(shape, np.float32)}
times = []
with OnnxrtRunner(session) as runner:
    for _ in range(20 + int(sys.argv[3])):
        runner.infer(feed)
        times.append(runner.last_inference_time())
print("median", 1000 * np.median(times[20:]), "ms")
"""


def crosscheck(row: Row, file: Artefact) -> Row | None:
    """A row of kind `crosscheck`: tool, its median, ours and their ratio.

    `absent` if the tool is not here or fails; None for a row that no tool covers.
    """
    if file.kind == "engine" and row["backend"] == "trt":
        tool = "trtexec"
        here = shutil.which("trtexec") is not None
    elif row["backend"] == "ort-cpu":
        tool = "polygraphy"
        here = importlib.util.find_spec("polygraphy") is not None
    else:
        return None
    if not here:
        fix = "pip install polygraphy" if tool == "polygraphy" else "it comes with TensorRT"
        return absent(f"cross-check with {tool}", f"{tool} is not here", fix)
    theirs = _trtexec(file.path) if tool == "trtexec" else _polygraphy(
        file.path, row.get("threads", 1))
    if isinstance(theirs, str):
        return absent(f"cross-check with {tool}", theirs, "run it by hand")
    if tool == "polygraphy":
        tool = f"polygraphy {version('polygraphy')}"
    kept = ("artefact", "sha256", "backend", "precision", "batch")
    return {"kind": "crosscheck", "tool": tool, **{key: row[key] for key in kept if key in row},
            "latency_ms": row["latency_ms"], "tool_ms": theirs, "ratio": row["latency_ms"] / theirs}


def _trtexec(engine: Path) -> float | str:
    """Median GPU compute time."""
    with TemporaryDirectory() as folder:
        times = Path(folder) / "times.json"
        done = _run([
            "trtexec", f"--loadEngine={engine}", "--useSpinWait", "--noDataTransfers",
            f"--iterations={ITERATIONS}", "--warmUp=500", "--duration=3", f"--exportTimes={times}"
        ])
        if not times.is_file():
            return f"trtexec failed: {done[-200:]}"
        return float(np.median([call["computeMs"] for call in json.loads(times.read_text())]))


def _polygraphy(model: Path, threads: int) -> float | str:
    """Median of polygraphy's own clock around its own runner, onnxruntime set as ours is."""
    said = _run([sys.executable, "-c", _POLYGRAPHY, str(model), str(threads), str(ITERATIONS)])
    found = re.search(r"median ([\d.]+) ms", said)
    return float(found[1]) if found else f"polygraphy said no time: {said[-200:]}"


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return " ".join((done.stdout + done.stderr).split())
