"""Run folder -> its ONNX files: each built, checked, gated and only then written."""
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import onnx

from export.artefact import Facts, discard, save_onnx, source_digest, up_to_date
from export.graph.check import brief, check_qdq
from export.graph.dialects import to_unsigned, to_weakly_typed
from export.graph.export_onnx import OPSET, Batch, export_onnx, interface
from export.graph.fp16 import to_half
from export.graph.session import OnnxModel, TorchModel
from export.parity import Gate, GateError, Parity, Precision, token_cosine
from export.quant.fp8 import fp8_facts, quantize_fp8
from export.quant.int8 import Recipe, calibration_facts, quantize
from export.quant.sensitivity import quantized_layers, within_budget
from export.source import CALIBRATION_FRAMES, HELDOUT_FRAMES, TrainedRun, evenly_spaced, to_input
from records.files import digest, prepare_folder, write_json

PROBE_FRAMES = 128  # x 196 tokens: the depth probe's weights change no more
Log = Callable[[str], None]


@dataclass(frozen=True)
class ArtefactSpec:
    """One ONNX file of an export: its name, its precision, and how an Exporter builds its graph."""
    file: str
    precision: Precision
    what: str                  # stored in the metadata as `for`: rewording it changes files
    build: Callable[["Exporter"], onnx.ModelProto]
    target: str | None = None  # whose Q/DQ rules it must obey (graph/targets.py)
    optimise: bool = False     # gate at onnxruntime's full optimisation, as its users run it
    open_batch: bool = False   # takes any number of frames, whatever `Options.batch` is


FP32 = ArtefactSpec("model.onnx", "fp32", "FP32: parity, mobile, web fallback",
                    lambda exporter: exporter.fp32)
FP16 = ArtefactSpec("model.fp16.onnx", "fp16", "FP16: TensorRT 10+ and RTX, web",
                    lambda exporter: to_half(exporter.fp32))
FP8 = ArtefactSpec(
    "model.fp8.onnx", "fp8", "FP8 + FP16, typed: TensorRT 10+, RTX; Ada, Hopper, Blackwell, Thor",
    lambda exporter: to_half(exporter.fp8), target="trt10")
INT8 = ArtefactSpec("model.int8.onnx", "int8", "INT8 + FP16, typed: TensorRT 10+ and RTX",
                    lambda exporter: to_half(exporter.int8.model), target="trt10")
INT8_CPU = ArtefactSpec(
    "model.int8.cpu.onnx", "int8", "uint8 + FP32: onnxruntime on CPU and web",
    lambda exporter: to_unsigned(exporter.int8.model), "cpu", optimise=True, open_batch=True)
INT8_WEAKLY_TYPED = ArtefactSpec(
    "model.int8.flagged.onnx", "int8", "INT8, flagged: TensorRT 8.6, JetPack 6.0",
    lambda exporter: to_weakly_typed(exporter.int8.model), target="trt8.6")
WEAKLY_TYPED = ArtefactSpec(
    "model.flagged.onnx", "fp32", "opset 17: TensorRT 8.6, under its FP16 flag",
    lambda exporter: to_weakly_typed(exporter.fp32), target="trt8.6")
ARTEFACTS: dict[Precision, tuple[ArtefactSpec, ...]] = {
    "fp32": (FP32,), "fp16": (FP16,), "fp8": (FP8,), "int8": (INT8, INT8_CPU, INT8_WEAKLY_TYPED)}


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


@dataclass(frozen=True)
class Int8Graph:
    """The calibrated signed INT8 graph. `max_drop` may have returned layers to half precision."""
    model: onnx.ModelProto
    recipe: Recipe


class Exporter:
    """Exports a run's ONNX files. The FP32 graph, calibration and gate are computed once."""

    def __init__(self, run: TrainedRun, options: Options = Options(), log: Log = print):
        self.run, self.options, self.log = run, options, log
        prepare_folder(run.out)
        self._exported: dict[tuple[ArtefactSpec, ...], list[ExportedFile]] = {}
        if len(run.calibration) < CALIBRATION_FRAMES:
            log(f"only {len(run.calibration)} calibration frames (expected >= "
                f"{CALIBRATION_FRAMES}): INT8 ranges may miss rare activations")

    def export(self, precision: Precision) -> list[ExportedFile]:
        """The files of one precision. Raises GateError if one fails; none is then written."""
        return self.export_files(ARTEFACTS[precision])

    def export_files(self, specs: tuple[ArtefactSpec, ...]) -> list[ExportedFile]:
        """Files of one precision; a second call returns the same list."""
        if specs not in self._exported:
            key = self.cache_key(specs[0].precision)
            self._exported[specs] = self._up_to_date(specs, key) or self._export(specs, key)
        return self._exported[specs]

    def cache_key(self, precision: Precision) -> str:
        """A digest of all that decides a file's bytes: inputs, options, package versions, code."""
        quantised = [self.run.calibration.digest, self.options.recipe.facts(),
                     self.options.max_drop, self.options.qat]
        return digest(self.run.student_sha256, self.run.heldout.digest, self.options.batch, OPSET,
                      _versions(), source_digest(),
                      quantised if precision in ("int8", "fp8") else None)

    @cached_property
    def fp32(self) -> onnx.ModelProto:
        self.log("exporting the student to ONNX")
        return export_onnx(self.run.student, self.options.batch)

    @cached_property
    def fp8(self) -> onnx.ModelProto:
        self.log("calibrating FP8")
        return quantize_fp8(self.fp32, self.run.calibration, self.options.recipe)

    @cached_property
    def int8(self) -> Int8Graph:
        recipe = self.options.recipe
        facts = calibration_facts(self.run.calibration, recipe)
        self.log(f"calibrating INT8 on {facts['frames']} frames")
        write_json(facts, self.run.out / "calibration.json")
        model, max_drop = self._quantize(recipe), self.options.max_drop
        if max_drop is None:
            return Int8Graph(model, recipe)
        model, layers = within_budget(
            model, max_drop, self.gate,
            lambda layers: self._quantize(replace(recipe, float_layers=tuple(layers))), self.log)
        return Int8Graph(model, replace(recipe, float_layers=tuple(layers)))

    @cached_property
    def gate(self) -> Gate:
        self.log(f"reference features of {len(self.run.heldout)} held-out frames")
        probe_frames = self.run.calibration.subset(PROBE_FRAMES)
        return Gate(TorchModel(self.run.student), self.run.heldout, probe_frames)

    def found(self, precision: Precision) -> list[ExportedFile]:
        """The files of one precision if all are up to date, else none."""
        return self._up_to_date(ARTEFACTS[precision], self.cache_key(precision))

    def _up_to_date(self, specs: tuple[ArtefactSpec, ...], key: str) -> list[ExportedFile]:
        files = []
        for spec in specs:
            path = self.run.out / spec.file
            if (facts := up_to_date(path, key, self.log)) is None:
                return []
            files.append(ExportedFile(path, spec, facts, reused=True))
        self.log(f"{', '.join(spec.file for spec in specs)}: up to date")
        return files

    def _export(self, specs: tuple[ArtefactSpec, ...], key: str) -> list[ExportedFile]:
        """All are built and gated before the first is replaced: a failure leaves earlier ones."""
        built = []
        for spec in specs:
            path = self.run.out / spec.file
            model = spec.build(self)
            quantised = spec.precision in ("int8", "fp8")
            if spec.target and (broken := check_qdq(model, spec.target, want_int8=quantised)):
                raise GateError(f"{path}: breaks the rules of {spec.target}: "
                                f"{'; '.join(brief(broken)[:3])}")
            self.log(f"gate: {spec.file}")
            parity = self.gate(OnnxModel(model, spec.optimise), spec.precision, str(path))
            built.append((spec, model, self.facts(spec, parity, key)))
        files = []
        for spec, model, facts in built:
            path = self.run.out / spec.file
            discard(path)  # with the engines that were built from it
            files.append(ExportedFile(path, spec, save_onnx(model, path, facts), reused=False))
        return files

    def facts(self, spec: ArtefactSpec, parity: Parity | None, key: str) -> Facts:
        student = self.run.student
        facts: Facts = {
            **interface(student, "dynamic" if spec.open_batch else self.options.batch),
            "precision": spec.precision, "for": spec.what, "cache_key": key,
            "student": {"size": student.config.size, "depth": student.config.depth,
                        "sha256": self.run.student_sha256},
            "parity": parity and parity.facts(), "heldout_sha256": self.run.heldout.digest,
            "versions": _versions(),
        }
        if student.config.teacher:
            facts["teacher_digest"] = student.config.teacher
        if spec.target and spec.precision in ("int8", "fp8"):
            facts |= self.quantisation_facts(spec.precision)
        return facts

    def quantisation_facts(self, precision: Precision) -> Facts:
        recipe = self.options.recipe
        if precision == "int8" and "int8" in vars(self):  # max_drop may have changed it
            recipe = self.int8.recipe
        qat = {**recipe.facts(), "qat_steps": self.options.qat}
        facts = qat if precision == "int8" else fp8_facts(recipe)
        return {"quantisation": facts,
                "calibration_digest": calibration_facts(self.run.calibration, recipe)["digest"]}

    def _quantize(self, recipe: Recipe) -> onnx.ModelProto:
        model = quantize(self.fp32, self.run.calibration, recipe)
        return self._distilled(model) if self.options.qat else model

    def _distilled(self, quantised: onnx.ModelProto) -> onnx.ModelProto:
        """`quantised` after quantisation-aware distillation, or itself if that did not help."""
        from export.quant.qat import distil_int8

        model = distil_int8(self.run.student, self.run.calibration, quantized_layers(quantised),
                            self.options.recipe, self.options.qat, self.options.batch, self.log)
        frames = to_input(evenly_spaced(self.run.calibration.frames, HELDOUT_FRAMES))
        reference = TorchModel(self.run.student)(frames)
        before, after = (float(token_cosine(reference, OnnxModel(m)(frames)).mean())
                         for m in (quantised, model))
        self.log(f"qat: mean cosine {before:.6f} -> {after:.6f} on {len(frames)} calibration frames"
                 f"{'' if after > before else ': kept the model without it'}")
        return model if after > before else quantised


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "onnx", "onnxruntime", "nncf")}
