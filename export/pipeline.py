"""Run folder -> its ONNX files, each verified and gated before it takes its name; what is up to
date stays."""
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import onnx

from export.artefact import Facts, discard, ready, save_onnx, up_to_date
from export.graph.check import brief, check_qdq
from export.graph.dialects import to_flagged, to_unsigned
from export.graph.export_onnx import OPSET, Batch, export_onnx, interface
from export.graph.fp16 import to_half
from export.graph.session import OnnxModel, TorchModel
from export.parity import Gate, GateError, Parity, Precision, token_cosine
from export.quant.fp8 import fp8_facts, quantize_fp8
from export.quant.int8 import Recipe, calibration_facts, quantize
from export.quant.sensitivity import quantized_layers, within_budget
from export.source import CALIBRATION_FRAMES, HELDOUT_FRAMES, Frames, Run, spread, to_input
from records.files import digest, sha256, write_json

PROBE_FRAMES = 128  # x 196 tokens: the depth probe's weights no longer move
Say = Callable[[str], None]


@dataclass(frozen=True)
class Kind:
    """One file of an export: its name, precision, and the target whose rules its Q/DQ must obey."""
    file: str
    precision: Precision
    what: str
    target: str | None = None
    optimise: bool = False   # gate at onnxruntime's full optimisation, as its users run it
    open_batch: bool = False # takes any number of frames, whatever was asked for


FP32 = Kind("model.onnx", "fp32", "FP32: parity, mobile, web fallback")
FP16 = Kind("model.fp16.onnx", "fp16", "FP16: TensorRT 10+ and RTX, web")
INT8 = Kind("model.int8.onnx", "int8", "INT8 + FP16, typed: TensorRT 10+ and RTX", "trt10")
INT8_CPU = Kind("model.int8.cpu.onnx", "int8", "uint8 + FP32: onnxruntime on CPU and web", "cpu",
                optimise=True, open_batch=True)
INT8_FLAGGED = Kind("model.int8.flagged.onnx", "int8", "INT8, flagged: TensorRT 8.6, JetPack 6.0",
                    "trt8.6")
FLAGGED = Kind("model.flagged.onnx", "fp32", "opset 17: TensorRT 8.6, under its FP16 flag",
               "trt8.6")
FP8 = Kind("model.fp8.onnx", "fp8",
           "FP8 + FP16, typed: TensorRT 10+, RTX; Ada, Hopper, Blackwell, Thor", "trt10")
KINDS: dict[Precision, tuple[Kind, ...]] = {"fp32": (FP32,), "fp16": (FP16,), "fp8": (FP8,),
                                            "int8": (INT8, INT8_CPU, INT8_FLAGGED)}


@dataclass(frozen=True)
class Made:
    path: Path
    kind: Kind
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

    def __init__(self, run: Run, options: Options = Options(), say: Say = print):
        self.run, self.options, self.say = run, options, say
        ready(run.out)
        self._made: dict[tuple[Kind, ...], list[Made]] = {}
        if len(run.calibration) < CALIBRATION_FRAMES:
            say(f"only {len(run.calibration)} calibration frames (expected >= "
                f"{CALIBRATION_FRAMES}): INT8 ranges may miss rare activations")

    def make(self, precision: Precision) -> list[Made]:
        """The files of one precision. Raises GateError (exit 3) if one fails; it is then
        removed."""
        return self.make_kinds(KINDS[precision])

    def make_kinds(self, kinds: tuple[Kind, ...]) -> list[Made]:
        """Files of one precision, once a process: the same call again returns the same."""
        if kinds not in self._made:
            self._made[kinds] = self._make(kinds)
        return self._made[kinds]

    def _make(self, kinds: tuple[Kind, ...]) -> list[Made]:
        key = self._cache_key(kinds[0].precision)
        held = [up_to_date(self.run.out / kind.file, key) for kind in kinds]
        if all(held):
            self.say(f"{', '.join(kind.file for kind in kinds)}: up to date")
            return [Made(self.run.out / kind.file, kind, facts, True)
                    for kind, facts in zip(kinds, held, strict=True) if facts]
        for kind in kinds:
            # made from something else: not to be found if what follows fails
            discard(self.run.out / kind.file)
        return [self._finish(kind, self._graph(kind), key) for kind in kinds]

    @cached_property
    def fp32(self) -> onnx.ModelProto:
        self.say("exporting the student to ONNX")
        return export_onnx(self.run.student, self.options.batch)

    @cached_property
    def gate(self) -> Gate:
        self.say(f"reference features of {len(self.run.heldout)} held-out frames")
        calibration = self.run.calibration
        depth = None if calibration.depth is None else spread(calibration.depth, PROBE_FRAMES)
        probed = Frames(spread(calibration.frames, PROBE_FRAMES), depth, calibration.digest)
        return Gate(TorchModel(self.run.student), self.run.heldout, probed)

    @cached_property
    def signed(self) -> tuple[onnx.ModelProto, Recipe]:
        """The calibrated signed INT8 graph and the recipe it took: `max_drop` may return layers to
        half."""
        recipe, facts = self.options.recipe, calibration_facts(self.run.calibration,
                                                               self.options.recipe)
        self.say(f"calibrating INT8 on {facts['frames']} frames")
        write_json(facts, self.run.out / "calibration.json")
        model = quantize(self.fp32, self.run.calibration, recipe)
        if self.options.qat:
            model = self._distilled(model)
        if self.options.max_drop is not None:
            model, floats = within_budget(model, self.options.max_drop, self.gate,
                                          lambda names: self._requantize(names), self.say)
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
                            self.options.recipe, self.options.qat, self.options.batch, self.say)
        frames = to_input(spread(self.run.calibration.frames, HELDOUT_FRAMES))
        reference = TorchModel(self.run.student)(frames)
        before, after = (float(token_cosine(reference,
                                            OnnxModel(m)(frames)).mean())
                         for m in (quantised, model))
        self.say(f"qat: mean cosine {before:.6f} -> {after:.6f} on {len(frames)} calibration frames"
                 f"{'' if after > before else ': kept the model without it'}")
        return model if after > before else quantised

    def _graph(self, kind: Kind) -> onnx.ModelProto:
        if kind is FP32:
            return self.fp32
        if kind is FP16:
            return to_half(self.fp32)
        if kind is FLAGGED:
            return to_flagged(self.fp32)
        if kind is FP8:
            self.say("calibrating FP8")
            return to_half(quantize_fp8(self.fp32, self.run.calibration, self.options.recipe))
        signed, _ = self.signed
        return {INT8.file: to_half, INT8_CPU.file: to_unsigned,
                INT8_FLAGGED.file: to_flagged}[kind.file](signed)

    def _finish(self, kind: Kind, model: onnx.ModelProto, key: str) -> Made:
        """Verifies, gates, and only then writes."""
        path = self.run.out / kind.file
        if kind.target:
            broken = check_qdq(model, kind.target, want_int8=kind.precision in ("int8", "fp8"))
            if broken:
                raise GateError(
                    f"{path}: breaks the rules of {kind.target}: {'; '.join(brief(broken)[:3])}")
        self.say(f"gate: {kind.file}")
        parity = self.gate(OnnxModel(model, optimise=kind.optimise), kind.precision, str(path))
        facts = save_onnx(model, path, self._facts(kind, parity, key))
        return Made(path, kind, facts, False)

    def _facts(self, kind: Kind, parity: Parity, key: str) -> Facts:
        student = self.run.student
        facts: Facts = {
            **interface(student, "dynamic" if kind.open_batch else self.options.batch), "precision":
                kind.precision, "for": kind.what, "cache_key": key, "student": {
                    "size": student.config.size, "depth": student.config.depth,
                    "sha256": self.run.student_sha256
                }, "parity": parity.facts(), "heldout_sha256": self.run.heldout.digest,
            "versions": _versions()
        }
        if student.config.teacher:
            facts["teacher_digest"] = student.config.teacher
        if kind.precision in ("int8", "fp8"):
            recipe = self.signed[1] if kind.precision == "int8" else self.options.recipe
            facts["quantisation"] = ({**recipe.facts(), "qat_steps": self.options.qat}
                                     if kind.precision == "int8" else fp8_facts(recipe))
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
