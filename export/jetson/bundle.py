"""`export trt --target jetson`: a folder to copy to the device, which builds its engines itself."""
import shutil
from dataclasses import asdict
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from export.artefact import Facts
from export.graph.check import brief, check_qdq
from export.graph.dialects import to_jetpack5
from export.graph.session import OnnxModel
from export.jetson.roofline import lower_bounds_table, operations, traffic
from export.parity import THRESHOLDS, GateError
from export.pipeline import FP16, INT8, INT8_WEAKLY_TYPED, WEAKLY_TYPED, ExportedFile, Exporter
from export.source import evenly_spaced, to_input
from export.tensorrt import cuda
from export.tensorrt.packages import KNOWN_BAD
from records import manifest, timing
from records.files import read_object, sha256, write_json
from records.outputs import OutputFolder

HERE = Path(__file__).parent
RUNNER = HERE / "run_on_jetson.py"
# import only each other
SCRIPTS = (RUNNER, HERE / "device_engine.py", HERE / "device_state.py", Path(cuda.__file__),
           Path(timing.__file__))
README = HERE / "bundle_readme.md"
REFERENCE_FRAMES = 32  # the gate's minimum; 5 MB of frames and 6 MB of features


def write_bundle(exporter: Exporter) -> Path:
    """Writes RUN/export/jetson/ and returns it; results that came home to it stay."""
    manifest.check(exporter.run.folder / "env.json", "make it again with: vega3d distill run")
    exported = [*exporter.export("int8"), *exporter.export("fp16"),
                *exporter.export_files((WEAKLY_TYPED,))]
    weakly_typed = [file for file in exported if file.spec in (INT8_WEAKLY_TYPED, WEAKLY_TYPED)]
    strongly_typed = [file for file in exported if file.spec in (INT8, FP16)]
    paths = [file.path for file in (*strongly_typed, *weakly_typed)]
    folder = exporter.run.out / "jetson"
    with TemporaryDirectory() as made:
        scratch = Path(made)
        for path in (*paths, *SCRIPTS):
            shutil.copy(path, scratch / path.name)
        paths += [_for_jetpack5(exporter, file, scratch) for file in weakly_typed]
        _write_references(exporter, scratch)
        settings = _settings(exporter, paths)
        write_json(settings, scratch / "bundle.json")
        (scratch / "README.md").write_text(_readme(exporter, settings["model"]))
        OutputFolder(folder).replace_with(scratch, "run")
    return folder


def _for_jetpack5(exporter: Exporter, file: ExportedFile, folder: Path) -> Path:
    """The weakly typed file without LayerNormalization, behind the same gate."""
    path = folder / file.path.name.replace("flagged", "jp5")
    model = to_jetpack5(onnx.load(file.path))
    if broken := check_qdq(model, "jetson-orin-jp5", want_int8=file.spec is INT8_WEAKLY_TYPED):
        raise GateError(f"{path.name}: breaks the rules of JetPack 5: {'; '.join(brief(broken))}")
    exporter.gate(OnnxModel(model), file.spec.precision, path.name)
    onnx.save(model, path)
    return path


def _write_references(exporter: Exporter, folder: Path) -> None:
    """What the device's gate needs: frames, FP32 features, and the depth probe if there is one."""
    gate, heldout = exporter.gate, exporter.run.heldout
    rows = evenly_spaced(np.arange(len(heldout)), REFERENCE_FRAMES)
    frames = heldout.frames[rows]
    # the script has no to_input
    assert np.array_equal(to_input(frames[:1]), frames[:1].astype(np.float32) / 255)
    np.save(folder / "reference_frames.npy", frames)                    # uint8 [32,3,224,224]
    np.save(folder / "reference_features.npy", gate.reference[rows])    # float32 [32,D,14,14]
    if gate.probe is not None and heldout.depth is not None:
        np.savez(folder / "probe.npz", weights=gate.probe.weights, bias=gate.probe.bias,
                 depth=heldout.depth[rows])


def _settings(exporter: Exporter, files: list[Path]) -> Facts:
    thresholds = {"fp16": asdict(THRESHOLDS["fp16"]), "int8": asdict(THRESHOLDS["int8"])}
    known_bad = {f"{major}.{minor}": reason for (major, minor), reason in KNOWN_BAD.items()}
    return {
        "schema": 1, "model": f"vit-{exporter.run.student.config.size}",
        "commit": str(read_object(exporter.run.folder / "env.json").get("commit", "unknown")),
        "student_sha256": exporter.run.student_sha256,
        "thresholds": thresholds, "known_bad_tensorrt": known_bad,
        "sha256": {path.name: sha256(path) for path in files},
    }


def _readme(exporter: Exporter, model: str) -> str:
    config = exporter.run.student.config
    return Template(README.read_text()).substitute(
        model=model, frames=REFERENCE_FRAMES, gflop=f"{operations(config) / 1e9:.2f}",
        mb=f"{traffic(config, 'int8') / 1e6:.1f}", table=lower_bounds_table())
