"""Run folder -> its ONNX files, each verified and gated before it takes its name; what is up to
date stays."""
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import onnx

from export.artefact import Facts, discard, prepare_folder, save_onnx, up_to_date
from export.graph.check import brief, check_qdq
from export.graph.dialects import to_unsigned, to_weakly_typed
from export.graph.export_onnx import OPSET, Batch, export_onnx, interface
from export.graph.fp16 import to_half
from export.graph.session import OnnxModel, TorchModel
from export.parity import Gate, GateError, Parity, Precision, token_cosine
from export.quant.fp8 import fp8_facts, quantize_fp8
from export.quant.int8 import Recipe, calibration_facts, quantize
from export.quant.sensitivity import quantized_layers, within_budget
from export.source import (
    CALIBRATION_FRAMES,
    HELDOUT_FRAMES,
    Frames,
    TrainedRun,
    evenly_spaced,
    to_input,
)
from records.files import digest, sha256, write_json

PROBE_FRAMES = 128  # x 196 tokens: the depth probe's weights no longer move
Log = Callable[[str], None]


@dataclass(frozen=True)
class ArtefactSpec:
    """One file of an export: its name, precision, and the target whose rules its Q/DQ must obey."""
    file: str
    precision: Precision
    what: str
    target: str | None = None
    optimise: bool = False   # gate at onnxruntime's full optimisation, as its users run it
    open_batch: bool = False # takes any number of frames, whatever was asked for


FP32 = ArtefactSpec("model.onnx", "fp32", "FP32: parity, mobile, web fallback")
FP16 = ArtefactSpec("model.fp16.onnx", "fp16", "FP16: TensorRT 10+ and RTX, web")
INT8 = ArtefactSpec("model.int8.onnx", "int8", "INT8 + FP16, typed: TensorRT 10+ and RTX", "trt10")
INT8_CPU = ArtefactSpec("model.int8.cpu.onnx", "int8", "uint8 + FP32: onnxruntime on CPU and web", "cpu",
                optimise=True, open_batch=True)
INT8_WEAKLY_TYPED = ArtefactSpec("model.int8.flagged.onnx", "int8", "INT8, flagged: TensorRT 8.6, JetPack 6.0",
                    "trt8.6")
WEAKLY_TYPED = ArtefactSpec("model.flagged.onnx", "fp32", "opset 17: TensorRT 8.6, under its FP16 flag",
               "trt8.6")
FP8 = ArtefactSpec("model.fp8.onnx", "fp8",
           "FP8 + FP16, typed: TensorRT 10+, RTX; Ada, Hopper, Blackwell, Thor", "trt10")
ARTEFACTS: dict[Precision, tuple[ArtefactSpec, ...]] = {"fp32": (FP32,), "fp16": (FP16,), "fp8": (FP8,),
                                            "int8": (INT8, INT8_CPU, INT8_WEAKLY_TYPED)}


@dataclass(frozen=True)
class ExportedFile:
    path: Path
    spec: ArtefactSpec
    facts: Facts
    reused: bool

    @property
    def parity(self) -> Facts:
        return self.facts["parity"]


@dataclass(frozen=True)
class Options:
    batch: Batch = 1
    recipe: Recipe = field(default_factory=Recipe)
    max_drop: float | None = None  # of mean token cosine, INT8 against FP32
    qat: int = 0                   # steps of quantisation-aware distillation


class Exporter:
    """Makes a run's ONNX files. What is costly (FP32 graph, gate, calibration) is made once, when
    first needed."""

    def __init__(self, run: TrainedRun, options: Options = Options(), log: Log = print):
        self.run, self.options, self.log = run, options, log
        prepare_folder(run.out)
        self._made: dict[tuple[ArtefactSpec, ...], list[ExportedFile]] = {}
        if len(run.calibration) < CALIBRATION_FRAMES:
            log(f"only {len(run.calibration)} calibration frames (expected >= "
                f"{CALIBRATION_FRAMES}): INT8 ranges may miss rare activations")

    def export(self, precision: Precision) -> list[ExportedFile]:
        """The files of one precision. Raises GateError (exit 3) if one fails; it is then
        removed."""
        return self.export_files(ARTEFACTS[precision])

    def export_files(self, specs: tuple[ArtefactSpec, ...]) -> list[ExportedFile]:
        """Files of one precision, once a process: the same call again returns the same."""
        if specs not in self._made:
            self._made[specs] = self._make(specs)
        return self._made[specs]

    def _make(self, specs: tuple[ArtefactSpec, ...]) -> list[ExportedFile]:
        key = self._cache_key(specs[0].precision)
        held = [up_to_date(self.run.out / spec.file, key) for spec in specs]
        if all(held):
            self.log(f"{', '.join(spec.file for spec in specs)}: up to date")
            return [ExportedFile(self.run.out / spec.file, spec, facts, True)
                    for spec, facts in zip(specs, held, strict=True) if facts]
        for spec in specs:
            # made from something else: not to be found if what follows fails
            discard(self.run.out / spec.file)
        return [self._finish(spec, self._graph(spec), key) for spec in specs]

    @cached_property
    def fp32(self) -> onnx.ModelProto:
        self.log("exporting the student to ONNX")
        return export_onnx(self.run.student, self.options.batch)

    @cached_property
    def gate(self) -> Gate:
        self.log(f"reference features of {len(self.run.heldout)} held-out frames")
        calibration = self.run.calibration
        depth = None if calibration.depth is None else evenly_spaced(calibration.depth, PROBE_FRAMES)
        probed = Frames(evenly_spaced(calibration.frames, PROBE_FRAMES), depth, calibration.digest)
        return Gate(TorchModel(self.run.student), self.run.heldout, probed)

    @cached_property
    def signed_int8(self) -> tuple[onnx.ModelProto, Recipe]:
        """The calibrated signed INT8 graph and the recipe it took: `max_drop` may return layers to
        half."""
        recipe, facts = self.options.recipe, calibration_facts(self.run.calibration,
                                                               self.options.recipe)
        self.log(f"calibrating INT8 on {facts['frames']} frames")
        write_json(facts, self.run.out / "calibration.json")
        model = quantize(self.fp32, self.run.calibration, recipe)
        if self.options.qat:
            model = self._distilled(model)
        if self.options.max_drop is not None:
            model, floats = within_budget(model, self.options.max_drop, self.gate,
                                          lambda names: self._requantize(names), self.log)
            recipe = replace(recipe, float_layers=tuple(floats))
        return model, recipe

    def _requantize(self, float_layers: list[str]) -> onnx.ModelProto:
        recipe = replace(self.options.recipe, float_layers=tuple(float_layers))
        model = quantize(self.fp32, self.run.calibration, recipe)
        return self._distilled(model) if self.options.qat else model

    def _distilled(self, quantised: onnx.ModelProto) -> onnx.ModelProto:
        """The same layers in INT8 after `--qat` steps; as they were if that did not help on the
        frames distilled on."""
        from export.quant.qat import distil_int8

        model = distil_int8(self.run.student, self.run.calibration, quantized_layers(quantised),
                            self.options.recipe, self.options.qat, self.options.batch, self.log)
        frames = to_input(evenly_spaced(self.run.calibration.frames, HELDOUT_FRAMES))
        reference = TorchModel(self.run.student)(frames)
        before, after = (float(token_cosine(reference,
                                            OnnxModel(m)(frames)).mean())
                         for m in (quantised, model))
        self.log(f"qat: mean cosine {before:.6f} -> {after:.6f} on {len(frames)} calibration frames"
                 f"{'' if after > before else ': kept the model without it'}")
        return model if after > before else quantised

    def _graph(self, spec: ArtefactSpec) -> onnx.ModelProto:
        if spec is FP32:
            return self.fp32
        if spec is FP16:
            return to_half(self.fp32)
        if spec is WEAKLY_TYPED:
            return to_weakly_typed(self.fp32)
        if spec is FP8:
            self.log("calibrating FP8")
            return to_half(quantize_fp8(self.fp32, self.run.calibration, self.options.recipe))
        signed, _ = self.signed_int8
        return {INT8.file: to_half, INT8_CPU.file: to_unsigned,
                INT8_WEAKLY_TYPED.file: to_weakly_typed}[spec.file](signed)

    def _finish(self, spec: ArtefactSpec, model: onnx.ModelProto, key: str) -> ExportedFile:
        """Verifies, gates, and only then writes."""
        path = self.run.out / spec.file
        if spec.target:
            broken = check_qdq(model, spec.target, want_int8=spec.precision in ("int8", "fp8"))
            if broken:
                raise GateError(
                    f"{path}: breaks the rules of {spec.target}: {'; '.join(brief(broken)[:3])}")
        self.log(f"gate: {spec.file}")
        parity = self.gate(OnnxModel(model, optimise=spec.optimise), spec.precision, str(path))
        facts = save_onnx(model, path, self._facts(spec, parity, key))
        return ExportedFile(path, spec, facts, False)

    def _facts(self, spec: ArtefactSpec, parity: Parity, key: str) -> Facts:
        student = self.run.student
        facts: Facts = {
            **interface(student, "dynamic" if spec.open_batch else self.options.batch), "precision":
                spec.precision, "for": spec.what, "cache_key": key, "student": {
                    "size": student.config.size, "depth": student.config.depth,
                    "sha256": self.run.student_sha256
                }, "parity": parity.facts(), "heldout_sha256": self.run.heldout.digest,
            "versions": _versions()
        }
        if student.config.teacher:
            facts["teacher_digest"] = student.config.teacher
        if spec.precision in ("int8", "fp8"):
            recipe = self.signed_int8[1] if spec.precision == "int8" else self.options.recipe
            facts["quantisation"] = ({**recipe.facts(), "qat_steps": self.options.qat}
                                     if spec.precision == "int8" else fp8_facts(recipe))
            facts["calibration_digest"] = calibration_facts(self.run.calibration, recipe)["digest"]
        return facts

    def _cache_key(self, precision: Precision) -> str:
        quantised = [
            self.run.calibration.digest,
            self.options.recipe.facts(), self.options.max_drop, self.options.qat
        ]
        return digest(self.run.student_sha256, self.run.heldout.digest, self.options.batch, OPSET,
                      _versions(), _source(), quantised if precision in ("int8", "fp8") else None)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "onnx", "onnxruntime", "nncf")}


def _source() -> str:
    """This room's own code: a file made by another version of it is made again."""
    return digest([sha256(path) for path in sorted(Path(__file__).parent.rglob("*.py"))])
