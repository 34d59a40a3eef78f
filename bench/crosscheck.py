"""The same file under another's clock: NVIDIA's trtexec for engines, polygraphy for ONNX files, where installed."""
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bench.artefacts import Artefact, absent
from records.results import Row

ITERATIONS = 200
SECONDS = 300  # before a tool is given up


def crosscheck(row: Row, file: Artefact) -> Row | None:
    """A row of kind `crosscheck`: tool, its median (polygraphy tells only a mean), ours and their ratio.

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
    theirs = _trtexec(file.path) if tool == "trtexec" else _polygraphy(file.path, row.get("threads", 1))
    if isinstance(theirs, str):
        return absent(f"cross-check with {tool}", theirs, "run it by hand")
    return {"kind": "crosscheck", "tool": tool, **{key: row[key] for key in ("artefact", "sha256", "backend", "batch")},
            "latency_ms": row["latency_ms"], "tool_ms": theirs, "ratio": row["latency_ms"] / theirs}


def _trtexec(engine: Path) -> float | str:
    """Median GPU compute time."""
    with TemporaryDirectory() as folder:
        times = Path(folder) / "times.json"
        done = _run(["trtexec", f"--loadEngine={engine}", "--useSpinWait", "--noDataTransfers",
                     f"--iterations={ITERATIONS}", "--warmUp=500", "--duration=3", f"--exportTimes={times}"])
        if not times.is_file():
            return f"trtexec failed: {done[-200:]}"
        return float(np.median([call["computeMs"] for call in json.loads(times.read_text())]))


def _polygraphy(model: Path, threads: int) -> float | str:
    """Mean time of a call, host to host; on one core as ours, for onnxruntime counts the cores its process may use."""
    command = [sys.executable, "-c", "from polygraphy.tools import main; main()", "run", str(model), "--onnxrt",
               "--sequential-runners", "--warm-up", "20", "--iterations", str(ITERATIONS)]
    said = _run(["taskset", "-c", "0", *command] if threads == 1 and shutil.which("taskset") else command)
    found = re.search(r"Average inference time: ([\d.]+) ms", said)
    return float(found[1]) if found else f"polygraphy said no time: {said[-200:]}"


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return " ".join((done.stdout + done.stderr).split())
