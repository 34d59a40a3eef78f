"""The same file timed by another tool: trtexec for engines, polygraphy for ONNX files."""
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
TIMEOUT_SECONDS = 300
IDENTITY = ("artefact", "sha256", "backend", "precision", "batch")
_POLYGRAPHY = """
import sys
import numpy as np, onnxruntime as ort
from polygraphy.backend.onnxrt import OnnxrtRunner
options = ort.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads = int(sys.argv[2]), 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
given, usual = session.get_inputs()[0], (1, 3, 224, 224)
shape = [side if isinstance(side, int) else other for side, other in zip(given.shape, usual)]
feed = {given.name: np.random.default_rng(0).random(shape, np.float32)}
times = []
with OnnxrtRunner(session) as runner:
    for _ in range(20 + int(sys.argv[3])):
        runner.infer(feed)
        times.append(runner.last_inference_time())
print("median", 1000 * np.median(times[20:]), "ms")
"""


def crosscheck(row: Row, file: Artefact) -> Row | None:
    """A row of kind `crosscheck`, or `absent` if the tool is not installed or fails; None for a row
    that no tool covers."""
    if file.kind == "engine" and row["backend"] == "trt":
        tool, fix = "trtexec", "it comes with TensorRT"
        installed = shutil.which("trtexec") is not None
    elif row["backend"] == "ort-cpu":
        tool, fix = "polygraphy", "pip install polygraphy"
        installed = importlib.util.find_spec("polygraphy") is not None
    else:
        return None
    if not installed:
        return absent(f"cross-check with {tool}", f"{tool} is not here", fix)
    found = (_trtexec(file.path) if tool == "trtexec" else
             _polygraphy(file.path, row.get("threads", 1)))
    if isinstance(found, str):
        return absent(f"cross-check with {tool}", found, "run it by hand")
    if tool == "polygraphy":
        tool = f"polygraphy {version('polygraphy')}"
    return {"kind": "crosscheck", "tool": tool, **{key: row[key] for key in IDENTITY if key in row},
            "latency_ms": row["latency_ms"], "tool_ms": found, "ratio": row["latency_ms"] / found}


def _trtexec(engine: Path) -> float | str:
    """Median GPU compute time, or why there is none."""
    with TemporaryDirectory() as folder:
        times = Path(folder) / "times.json"
        output = _run(["trtexec", f"--loadEngine={engine}", "--useSpinWait", "--noDataTransfers",
                       f"--iterations={ITERATIONS}", "--warmUp=500", "--duration=3",
                       f"--exportTimes={times}"])
        if not times.is_file():
            return f"trtexec failed: {output[-200:]}"
        return float(np.median([call["computeMs"] for call in json.loads(times.read_text())]))


def _polygraphy(model: Path, threads: int) -> float | str:
    """Median by polygraphy's clock and runner, onnxruntime configured as ours; or why not."""
    output = _run([sys.executable, "-c", _POLYGRAPHY, str(model), str(threads), str(ITERATIONS)])
    found = re.search(r"median ([\d.]+) ms", output)
    return float(found[1]) if found else f"polygraphy printed no time: {output[-200:]}"


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return " ".join((done.stdout + done.stderr).split())
