"""`vega3d teacher fetch | prompt | pretrain | probe`."""
import os
from pathlib import Path

import tyro

from teacher.grid import ProbeConfig
from teacher.pretrain import PretrainConfig


def fetch() -> None:
    """Convert the packaged semantic weights to safetensors, once; make setup calls it."""
    from teacher.semantic import fetch_semantic

    print(f"semantic encoder: {fetch_semantic()}")


def prompt(generator: tyro.conf.Positional[str], out: Path | None = None) -> None:
    """Export a generator's empty-prompt embedding, once; afterwards no text encoder is ever loaded.

    generator: a name, a hub id or a diffusers folder. out: None: where the extraction looks for it.
    """
    from teacher.generators import generator_folder, is_hub_id, prompt_file
    from teacher.prompt import export_prompt

    where = generator_folder(generator)
    if not where.is_dir() and not is_hub_id(where):
        raise ValueError(f"{generator}: no such folder; give a name, a hub id (OWNER/NAME) or a diffusers folder")
    print(f"prompt: {export_prompt(str(where), out or prompt_file(where))}")


def pretrain(config: tyro.conf.OmitArgPrefixes[PretrainConfig], furniture: Path | None = None, rooms: int = 500,
             render_seed: int = 1000) -> None:
    """Train wan-nano: rendered rooms -> VAE -> transformer. furniture: a pack (None: the CC0 one that ships)."""
    from scenes.rooms import RoomSource
    from teacher.pretrain import pretrain as run
    from teacher.samples import write_card, write_samples

    per_room = max(1, -(-config.clips // rooms))
    source = RoomSource(train=rooms, val=0, test=config.held_out, clips_per_room=per_room, frames=config.frames,
                        seed=render_seed, pack=furniture)
    folder = run(config, source)
    if int(os.environ.get("RANK", "0")) == 0:  # accelerate launch: one process writes
        write_samples(folder, source, config)
        write_card(folder, config)
        print(f"generator: {folder}")


def probe(config: tyro.conf.OmitArgPrefixes[ProbeConfig], furniture: Path | None = None,
          out: Path = Path("bench/results/nano_probe.json")) -> None:
    """Measure what each block, noise level and frame mode knows of 3D, beside every control; JSON and a heat map."""
    from scenes.rooms import RoomSource
    from teacher.grid import heat_map, probe_grid

    source = RoomSource(train=0, val=config.clips, test=config.clips, clips_per_room=1, frames=9, seed=2000,
                        pack=furniture)
    rows = probe_grid(config, source)
    from records.environment import environment
    from records.results import measured, save  # the door, not the room, knows where results go

    save(measured(out.stem, rows, environment()), out)
    heat_map(rows, out.with_suffix(".png"))
    print(f"{len(rows)} rows: {out}, {out.with_suffix('.png')}")


VERBS = {"fetch": fetch, "prompt": prompt, "pretrain": pretrain, "probe": probe}
