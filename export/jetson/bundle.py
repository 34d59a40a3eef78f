"""`export trt --target jetson`: the folder to copy onto the device. Engines do not travel, so it
builds them there."""
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx

from export.artefact import Facts
from export.graph.check import brief, check_qdq
from export.graph.dialects import to_jetpack5
from export.graph.session import OnnxModel
from export.jetson.roofline import operations, table, traffic
from export.parity import THRESHOLDS, GateError
from export.pipeline import FP16, INT8, INT8_WEAKLY_TYPED, WEAKLY_TYPED, ExportedFile, Exporter
from export.source import evenly_spaced, to_input
from records import timing
from records.files import atomic_write, sha256, write_json

RUNNER = Path(__file__).with_name("run_on_jetson.py")
SCRIPTS = (RUNNER, Path(timing.__file__))  # Python 3.8, numpy and tensorrt only
REFERENCE_FRAMES = 32  # the gate's floor; 5 MB of frames and 6 MB of features


def write_bundle(exporter: Exporter) -> Path:
    """Writes RUN/export/jetson/ whole, or not at all, and returns it. Every ONNX in it has passed
    its gate here."""
    made = [*exporter.export("int8"), *exporter.export("fp16"), *exporter.export_files((WEAKLY_TYPED,))]
    files = [file.path for file in made if file.spec in (INT8, INT8_WEAKLY_TYPED, FP16, WEAKLY_TYPED)]
    folder = exporter.run.out / "jetson"
    scratch = folder.with_name(".jetson.new")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for path in (*files, *SCRIPTS):
        shutil.copy(path, scratch / path.name)
    files += [
        _for_jetpack5(exporter, file, scratch) for file in made
        if file.spec in (INT8_WEAKLY_TYPED, WEAKLY_TYPED)
    ]
    _references(exporter, scratch)
    facts = _facts(exporter, files)
    write_json(facts, scratch / "bundle.json")
    (scratch / "README.md").write_text(_readme(exporter, facts))
    shutil.rmtree(folder, ignore_errors=True)
    scratch.replace(folder)
    return folder


def _for_jetpack5(exporter: Exporter, flagged: ExportedFile, folder: Path) -> Path:
    """The flagged file without LayerNormalization, held to the same gate. Raises GateError if it
    fails."""
    path = folder / flagged.path.name.replace("flagged", "jp5")
    model = to_jetpack5(onnx.load(flagged.path))
    if broken := check_qdq(model, "jetson-orin-jp5", want_int8=flagged.spec is INT8_WEAKLY_TYPED):
        raise GateError(f"{path.name}: breaks the rules of JetPack 5: {'; '.join(brief(broken))}")
    exporter.gate(OnnxModel(model), flagged.spec.precision, path.name)
    onnx.save(model, path)
    return path


def _references(exporter: Exporter, folder: Path) -> None:
    """What the device is held against: frames, FP32 features, and the depth probe where depth is
    known."""
    gate, heldout = exporter.gate, exporter.run.heldout
    rows = evenly_spaced(np.arange(len(heldout)), REFERENCE_FRAMES)
    assert np.array_equal(to_input(heldout.frames[rows[:1]]),
                          heldout.frames[rows[:1]].astype(np.float32) / 255)
    _save(folder / "reference_frames.npy", heldout.frames[rows])        # uint8 [32,3,224,224]
    _save(folder / "reference_features.npy", gate.reference[rows])      # float32 [32,D,14,14]
    if gate.probe is not None and heldout.depth is not None:
        np.savez(folder / "probe.npz", weights=gate.probe.weights, bias=gate.probe.bias,
                 depth=heldout.depth[rows])


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_write(path) as scratch:
        np.save(scratch, array, allow_pickle=False)


def _facts(exporter: Exporter, files: list[Path]) -> Facts:
    student = exporter.run.student.config
    thresholds = {precision: asdict(THRESHOLDS[precision])
                  for precision in ("fp16", "int8")}  # type: ignore[index]
    return {"schema": 1, "model": f"vit-{student.size}", "commit": _commit(exporter.run.folder),
            "student_sha256": exporter.run.student_sha256, "thresholds": thresholds,
            "sha256": {path.name: sha256(path) for path in files}}


def _commit(run: Path) -> str:
    """Of the code that made the run, as its env.json says."""
    try:
        return str(json.loads((run / "env.json").read_text())["commit"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def _readme(exporter: Exporter, facts: Facts) -> str:
    config = exporter.run.student.config
    gflop, mb = operations(config) / 1e9, traffic(config, "int8") / 1e6
    return f"""# {facts["model"]} on a Jetson

Everything is here: six ONNX files, what they must answer ({REFERENCE_FRAMES} frames with FP32 features), one script.
The device needs JetPack 5.1, 6 or 7 and numpy, nothing else: no PyTorch, no CUDA compiler, no network.

```
scp -r jetson USER@DEVICE:            # from this machine
ssh USER@DEVICE
cd jetson
sudo nvpmodel -m 0                    # the highest power mode (its number differs by device: nvpmodel -q --verbose)
sudo jetson_clocks                    # clocks fixed there; without it the first seconds time the governor
python3 run_on_jetson.py
```

It builds an FP16 and an INT8 engine (minutes the first time; a timing cache makes the next one quick), holds each
against the reference features (an engine that fails is not kept, exit 3), times both in turn, says which to use, and
writes `result.json` with power mode, clocks and temperatures. Copy that file back to keep it.

| JetPack | TensorRT | INT8 file | FP16 file |
|---|---|---|---|
| 5.1 | 8.5 | model.int8.jp5.onnx | model.jp5.onnx, under the FP16 flag, LayerNorm held in FP32 |
| 6.0 | 8.6 | model.int8.flagged.onnx | model.flagged.onnx, under the FP16 flag |
| 6.1, 6.2 | 10.3 | model.int8.onnx | model.fp16.onnx |
| 7 (Orin 7.2, Thor) | 10.13 to 11.4 | model.int8.onnx | model.fp16.onnx |

The script chooses by what the installed TensorRT offers. JetPack 5.0 (TensorRT 8.4) is too old: refused.
TensorRT 10.3 and 10.4 are known to be silently wrong on several ViTs: you are warned, and the gate decides.

**No DLA.** Orin's DLA takes INT8 by calibrators, not by Q/DQ, and hands LayerNorm, Softmax and attention back to the
GPU, so a ViT bounces between the two at every block. Orin Nano and Thor have none; TensorRT 10.8 to 11.3 dropped it.

## The least time it can take: computed, not measured
One frame of this student is {gflop:.2f} GFLOP and, if every fused layer reads and writes its tensors once, {mb:.1f} MB
of memory traffic in INT8 (a cache that holds some of it lowers that). Dense peak rates and bandwidth are NVIDIA's
published figures (GPU alone; Thor's INT8 is its FP8 rate). Real times are some multiple of these.

{table()}
"""
