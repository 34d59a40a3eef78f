"""The configuration of a run, from YAML and the command line. Imports no torch, for `--help`."""
import difflib
import types
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from records import manifest
from records.options import (
    Batch,
    Count,
    CountOrNone,
    DepthUnit,
    Frames,
    Processes,
    Range,
    Rate,
    Seed,
    Share,
    Weight,
    Width,
    check_ranges,
)
from records.outputs import safe_name
from records.yaml_files import read_yaml, write_yaml
from student.config import SHIPPED_BY_SIZE, StudentConfig
from teacher.config import DenseTraining
from teacher.towers.tap import Tap, stored_tap

# least of calibration and of the parity gate: 63 of their tokens are under the 1st percentile
EXPORT_FRAMES = 32


@dataclass(frozen=True)
class ScenesConfig:
    # a folder of clips (also s3://…) or images, or a video; None: rendered rooms
    path: Path | None = None
    furniture: Path | None = None  # a furniture pack; None: the CC0 one that ships
    style: Literal["plain", "filmed", "mixed"] = "plain"  # of rendered rooms (docs/rooms.md)
    train: CountOrNone = 48        # rooms in this split; ignored with a path
    val: CountOrNone = 0           # rooms, as above
    test: CountOrNone = 16         # rooms, as above
    clips_per_room: Count = 2
    frames: Frames = 5             # per clip, 4n+1
    seed: Seed = 0
    # rendering processes; None: one less than there are cores, 0: no extra process
    workers: Processes | None = None

    def __post_init__(self) -> None:
        check_ranges(self, "scenes")
        if self.frames % 4 != 1:
            raise ValueError(f"scenes.frames is {self.frames}, expected 4n+1 (1, 5, 9, 17)")


@dataclass(frozen=True)
class TeacherConfig:
    # a name (wan-nano, wan2.1-t2v-1.3b …), a hub id or a local folder in the diffusers layout
    generator: str = "wan-nano"
    tap: Tap = field(default_factory=Tap)  # in YAML also auto: what `vega3d teacher search` chose
    heads: DenseTraining = field(default_factory=DenseTraining)
    # streams that replace the generator's in dense teachers of the same size
    controls: tuple[Literal["zeros", "noise", "rgb", "vae", "random_weights"], ...] = ("zeros",)


@dataclass(frozen=True)
class StudentTraining:
    model: StudentConfig = field(default_factory=StudentConfig)
    # shipped: start from the student of this size in student/weights
    init: Literal["shipped", "scratch"] = "shipped"
    epochs: Count = 1             # passes over the training frames
    batch: Batch = 32             # frames
    lr: Rate = 1e-4               # peak; for training from scratch 1e-3
    weight_decay: Share = 0.05
    l1_weight: Share = 0.5        # of smooth L1 in the token loss
    relation_weight: Weight = 1.0  # of the relation loss
    augment: tuple[Literal["photometric"], ...] = ()  # changes of the student's input
    stem_lr: Share = 0.2          # of an ImageNet-trained stem, as a share of lr

    def __post_init__(self) -> None:
        check_ranges(self, "student")
        if self.model.grid != 14:
            raise ValueError(f"student.model: image_size {self.model.image_size} / patch "
                             f"{self.model.patch} is a grid of {self.model.grid}, expected 14: "
                             "that of the teacher's features")
        if self.init == "shipped" and self.model.size not in SHIPPED_BY_SIZE:
            raise ValueError(f"student.init is shipped, but no ViT-{self.model.size.title()} ships "
                             f"(sizes: {', '.join(SHIPPED_BY_SIZE)}); use --student.init scratch")


@dataclass(frozen=True)
class HeadTraining:
    """Training of the student's heads, depth, normals, descriptors, together with the student."""
    steps: CountOrNone = 60       # 0: no heads
    batch: Batch = 8              # pairs of frames
    lr: Rate = 2e-3               # of the heads
    width: Width = 64
    descriptor_dim: Width = 32
    # shipped: start from what fits of the shipped student's heads
    init: Literal["shipped", "scratch"] = "shipped"
    # joint: the student learns from labels too; frozen: its weights stay the distilled ones
    training: Literal["joint", "frozen"] = "joint"
    student_lr: Weight = 0.1      # joint: of the student, as a share of lr
    feature_weight: Weight = 1.0  # joint: of the distillation losses; 0: labels alone

    def __post_init__(self) -> None:
        check_ranges(self, "heads")


@dataclass(frozen=True)
class RunConfig:
    name: str | None = None       # runs/NAME; None: the next free runs/001, runs/002 …
    runs: Path = Path("runs")
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    # another run's features folder, which gets what it lacks, or a URL, which must have all; None:
    # the run's own
    features: Path | None = None
    teacher: TeacherConfig = field(default_factory=TeacherConfig)  # the generator and dense heads
    student: StudentTraining = field(default_factory=StudentTraining)
    heads: HeadTraining = field(default_factory=HeadTraining)
    # one dense teacher and one student each; the first seed's student is exported
    seeds: tuple[Seed, ...] = (0,)
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda if there is one

    def __post_init__(self) -> None:
        check_ranges(self, "")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds is {self.seeds}, expected one or more different numbers")
        name = self.name
        if name is not None and (safe_name(name) != name or name in ("latest", "cache")):
            raise ValueError(f"name is {name!r}, expected letters, digits, '.', '_' and '-', not "
                             "beginning with '.', and neither latest nor cache")


@dataclass(frozen=True)
class AdaptConfig(RunConfig):
    """Of `distill adapt`: scenes.path is the footage, the rest of scenes the rooms beside it."""
    scenes: ScenesConfig = field(default_factory=lambda: ScenesConfig(train=16, test=6))
    # trained heads and a trained student learn slower than new ones: else they forget rooms
    heads: HeadTraining = field(
        default_factory=lambda: HeadTraining(steps=240, lr=2e-4, student_lr=0.3))
    held_out: Annotated[float, Range(0, 0.9, above=True)] = 0.25  # last share of the footage
    replay: Annotated[float, Range(0, 0.9)] = 0.5                 # share of rooms in every batch
    depth_unit: DepthUnit | None = None  # values of depth pictures a metre; None: their layout's

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.heads.steps or len(self.seeds) > 1:
            raise ValueError("expected one of seeds, and heads.steps of at least 1")


def load_config(path: Path) -> RunConfig:
    """Reads YAML. Raises ValueError naming an unknown key (with the nearest) or a wrong type."""
    return _build(RunConfig, _read_yaml(path), str(path))


def load_run_config(folder: Path) -> RunConfig:
    """A run's config.yaml, which may be older than some fields of the tap. Errors: load_config;
    ValueError if the folder is no run.

    Relative paths in it are relative to the folder where the run was started.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{folder}: no run here (no config.yaml); make one with: vega3d distill "
                         "run")
    manifest.check(path, "undo the change; for other settings copy it elsewhere, edit the copy and "
                         "use: vega3d distill run --config COPY --name ANOTHER")
    data = _read_yaml(path)
    config = _build(AdaptConfig if "replay" in data else RunConfig, data, str(path))
    tap = data.get("teacher", {}).get("tap")
    if isinstance(tap, dict):
        config = replace(config, teacher=replace(config.teacher, tap=stored_tap(tap)))
    runs = config.runs
    if runs.is_absolute() or ".." in runs.parts:
        return config  # `anchored` when it was written
    start = folder.resolve().parents[len(runs.parts)]
    return config if start == Path.cwd() else anchored(config, start)


def anchored(config: RunConfig, start: Path) -> RunConfig:
    """With absolute paths for the relative ones that are in `start`."""
    def found(path: Path | None) -> Path | None:
        return start / path if path and (start / path).exists() else path

    scenes, teacher = config.scenes, config.teacher
    if teacher.generator != TeacherConfig.generator:
        teacher = replace(teacher, generator=str(found(Path(teacher.generator))))
    if teacher.tap.vae.endswith(".safetensors"):
        vae = str(found(Path(teacher.tap.vae)))
        teacher = replace(teacher, tap=replace(teacher.tap, vae=vae))
    return replace(config, teacher=teacher, scenes=replace(
        scenes, path=found(scenes.path), furniture=found(scenes.furniture)),
        features=found(config.features))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = read_yaml(path, "correct it")
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such config file") from error
    return {} if data is None else data


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML that `load_config` reads back."""
    return write_yaml(_plain(config))


def _build(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{where}: got {data!r}, expected keys and values")
    hints = get_type_hints(kind)
    if kind is TeacherConfig and data.get("tap") == "auto":
        from teacher.probing.tap_search import chosen_tap

        generator = str(data.get("generator", TeacherConfig.generator))
        data = data | {"tap": _plain(chosen_tap(generator, Tap()))}
    if kind is StudentTraining and data.get("ema") == 0:  # runs of before its removal have it
        data = {key: value for key, value in data.items() if key != "ema"}
    values = {}
    for key, value in data.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(hints)}"
            raise ValueError(f"{where}: unknown key {key!r}; {hint}")
        values[key] = _value(hints[key], value, f"{where}: {key}")
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _value(kind: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _value(next(a for a in args if a is not type(None)), value, where)
    if is_dataclass(kind):
        return _build(kind, value, where)  # type: ignore[arg-type]
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{where} is {value!r}, expected one of: {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} is {value!r}, expected a list")
        return tuple(_value(args[0], v, where) for v in value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e3
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{where} is {value!r}, expected {kind.__name__}")
    return value


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
