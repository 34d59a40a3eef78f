"""`vega3d distill run | adapt | heads | plan`; `distill` is also a console script of its own."""
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from distill.config import (
    AdaptConfig,
    HeadTraining,
    RunConfig,
    ScenesConfig,
    StudentTraining,
    load_config,
    load_run_config,
)
from records.files import exclusive
from records.options import Fps, Gpus, Hours, Seed, parse, take_option

_ROOMS, _HEADS = ScenesConfig(), HeadTraining()


def run(args: list[str]) -> None:
    """Train the teacher, distil the student, write a run folder.

    --config FILE.yaml sets the defaults of all other options. --tap auto takes the block, noise
    level and frame mode that `vega3d teacher search` chose for the generator.
    """
    path, args = take_option(args, "--config", "a YAML file")
    tap, args = take_option(args, "--tap", "auto")
    if tap not in (None, "auto"):
        raise ValueError("--tap: expected auto; set one value with --teacher.tap.block, …tap.k, …")
    config = parse(RunConfig, args, "vega3d distill run", description=run.__doc__,
                   default=load_config(Path(path)) if path else RunConfig())
    from distill.clips import check_paths

    check_paths(config)
    # after --help and paths: torch and diffusers take seconds
    from distill.stages import next_step, run_distillation
    from teacher.probing.tap_search import chosen_tap
    from teacher.training.processes import is_main

    if tap:
        chosen = chosen_tap(config.teacher.generator, config.teacher.tap)
        config = replace(config, teacher=replace(config.teacher, tap=chosen))
    folder = run_distillation(config)
    if is_main():
        print(f"run folder: {folder}\n{next_step(folder, 'vega3d export trt --int8')}")


def adapt(footage: tyro.conf.Positional[Path],
          config: Annotated[AdaptConfig, tyro.conf.arg(name="")]) -> None:
    """Adapt the shipped student to footage of one place; score it before and after on its last
    part. Writes a run folder, with adapt.json and the page adapt.html.

    Args:
        footage: a video, a folder of videos, or RGB-D frames in a layout of vega3d bench real
    """
    from distill.clips import check_paths

    config = replace(config, scenes=replace(config.scenes, path=footage))
    check_paths(config)
    from bench.real.page import write_adaptation  # of another command: a page is bench's
    from distill.adapt import adapt as run_adaptation
    from distill.stages import next_step

    folder = run_adaptation(config, write_adaptation)
    print(f"run: {folder}\npage: {folder}/adapt.html\n"
          + next_step(folder, "vega3d export onnx --preset edge"))


def heads(student: Path = Path("runs/latest/student"), scenes: ScenesConfig = _ROOMS,
          heads: HeadTraining = _HEADS, seed: Seed = 0, again: bool = False,
          device: Literal["auto", "cpu", "cuda"] = "auto") -> None:
    """Train heads for depth, normals and descriptors on a finished student, whose weights stay,
    from rendered rooms.

    Args:
        student: a folder with student.safetensors; heads.safetensors is written next to it
        scenes: the rooms to train and score on, rendered once into runs/cache
        heads: length and start of the training
        seed: of the training
        again: train again even if the student has heads
        device: auto: cuda if there is one
    """
    from distill.clips import open_source
    from distill.heads import can_train, ensure_heads
    from student.vit import load_student
    from teacher.data.dataset import Examples
    from teacher.training.processes import resolve_device

    load_student(student)  # before rooms are rendered
    with exclusive(student.parent, "vega3d distill heads"):
        source, _ = open_source(scenes, Path("runs/cache/clips"), render=True)
        if not can_train(source.clip(source.ids("train")[0])):
            raise ValueError("heads: the clips have no depth, normals and cameras; train on "
                             "rendered rooms: vega3d distill heads (without --scenes.path)")
        train, test = (Examples(source, source.ids(split), {}, resolve_device(device), True)
                       for split in ("train", "test"))
        frozen = replace(heads, training="frozen")
        row = ensure_heads(student, train, test, frozen, StudentTraining(), seed, again)
    for name, value in row.items():
        print(f"  {name:18} {value:.3f}" if isinstance(value, float) else f"  {name:18} {value}")
    print(f"heads: {student}/heads.safetensors")


def plan(hours: Hours = 1.0, gpus: Gpus = 1, fps: Fps = 5.0, run: Path | None = None) -> None:
    """Disk space and hours of a run on unlabelled video, from rates measured here in seconds.

    Without what labels add (dense teachers, heads), and without scoring and start-up.

    Args:
        hours: of video
        gpus: like this device; work is counted as if it divided evenly
        fps: frames taken a second
        run: a run folder whose configuration is planned for; without: the default configuration
    """
    config = load_run_config(run) if run else RunConfig()
    from distill.plan import measure  # imports torch
    from distill.plan import plan as planned

    rates, frames = measure(config), hours * 3600 * fps
    print(f"measured: generative {rates.generative:.1f}, semantic {rates.semantic:.1f} frames/s, "
          f"student {rates.student:.1f} images/s\n{frames:,.0f} frames on {gpus} devices:")
    print("\n".join(planned(rates, config, frames, gpus).lines()))


VERBS = {"run": run, "adapt": adapt, "heads": heads, "plan": plan}
PARSES_ITSELF = {"run"}
