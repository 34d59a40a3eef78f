"""The verbs of `vega3d scenes`: thin, everything behind them imports without the command line."""
from pathlib import Path
from typing import Annotated, Literal

import tyro

LIBRARY = Path("/usr/share/sweethome3d/furniture")


def render(n: int = 200, out: Path = Path("clips"), seed: int = 0, frames: int = 9, size: int = 224,
           clips_per_room: int = 1, furniture: Path | None = None,
           workers: int | None = None) -> None:
    """Renders clips of furnished rooms into a folder; the same command resumes after a stop.

    Args:
        n: clips in all; of their rooms 80 % are for training, 10 % each for validation and test.
        out: folder to write SPLIT/ID.safetensors and scenes.json to.
        seed: other seeds are other rooms.
        frames: frames a clip.
        size: pixels, square.
        clips_per_room: camera paths in each room.
        furniture: a pack made by `vega3d scenes pack`; by default the public-domain one that ships.
        workers: processes; 0 renders in this one. By default one less than there are cores, at most
            15.
    """
    from scenes.clip import SPLITS
    from scenes.rooms.source import RoomSource
    from scenes.rooms.writer import default_workers, render_folder

    if n < 1:
        raise ValueError(f"render: got n={n}, expected at least 1")
    rooms = -(-n // max(clips_per_room, 1))
    held = round(rooms * 0.1)
    source = RoomSource(train=rooms - 2 * held, val=held, test=held, clips_per_room=clips_per_room,
                        frames=frames, size=size, seed=seed, pack=furniture)
    ids = [i for split in SPLITS for i in source.ids(split)][:n]
    made = render_folder(source, ids, out, default_workers() if workers is None else workers)
    print(
        f"{out}: {len(ids)} clips, {made} new; look at one with: vega3d scenes show "
        f"{out}/{ids[0]}.safetensors"
    )


def show(clip: Annotated[Path, tyro.conf.Positional], out: Path | None = None) -> None:
    """Writes a contact sheet of one clip: colour, depth, instances, normals.

    Args:
        clip: a .safetensors file that `vega3d scenes render` wrote.
        out: the PNG; by default the clip's name with .png in the current folder.
    """
    from scenes.clip import load_clip
    from scenes.show import contact_sheet

    out = out or Path(f"{clip.stem}.png")
    sheet = contact_sheet(load_clip(clip))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)
    print(out)


def ask(clip: Annotated[Path, tyro.conf.Positional], task: str | None = None,
        seed: int = 0) -> None:
    """Prints the questions that a rendered clip supports, with their answers.

    Args:
        clip: a .safetensors file that `vega3d scenes render` wrote.
        task: only this task: "ground", "multi_ground", "caption", "situated", or "vsi:" and a type
            of VSI-Bench.
        seed: other seeds ask other questions.
    """
    from scenes.clip import load_clip
    from scenes.questions.question import TASKS
    from scenes.questions.question_statistics import print_questions

    print_questions(load_clip(clip), (task,) if task else TASKS, seed)


def census(out: Path = Path("bench/results/rooms_census.json"), rooms: int = 100,
           held_out: int = 40, frames: int = 9, step: int = 1, size: int = 224, seed: int = 0,
           workers: int | None = None) -> None:
    """Counts the questions of rendered rooms by task and writes how far guessing gets on them.

    Args:
        out: the result file.
        rooms: training rooms, one clip each.
        held_out: test rooms to score guesses on.
        frames: frames a clip.
        step: film this many times as many frames and keep every step-th, for clips that see more of
            the room.
        size: pixels, square.
        seed: of the rooms and the questions.
        workers: processes; by default one less than there are cores, at most 15.
    """
    from rich.progress import track

    from records.environment import environment
    from records.results import measured, save
    from scenes.questions.balance import question_set
    from scenes.questions.question_statistics import census as counted
    from scenes.rooms.source import RoomSource, render_clips
    from scenes.rooms.writer import default_workers
    from scenes.sources.strided import Strided

    if rooms < 1 or held_out < 1:
        raise ValueError(
            f"census: got rooms={rooms} and held_out={held_out}, expected at least 1 of each")
    film = step * (frames - 1) + 1
    source = Strided(
        RoomSource(train=rooms, val=0, test=held_out, frames=film, size=size, seed=seed), step)
    workers = default_workers() if workers is None else workers
    known, asked = (question_set(
        track(render_clips(source, ids, workers), f"asking {len(ids)} rooms", len(ids)), seed=seed)
                    for ids in (source.ids("train"), source.ids("test")))
    rows = counted(known, asked, rooms, held_out)
    save(measured(out.stem, rows, environment()), out)
    for row in rows:
        guesses = "  ".join(f"{k} {row[k]:.3f}"
                            for k in ("chance", "majority", "text_only", "constant") if row.get(k))
        print(
            f"{row['task']:<34} {row['per_100_rooms']:5.0f} a 100 rooms  "
            f"{row.get('metric', ''):<9} {guesses}"
        )
    print(out)


def pack(out: Path, library: Path = LIBRARY, licence: Literal["cc0", "all"] = "cc0",
         max_triangles: int | None = None) -> None:
    """Packs the Debian package sweethome3d-furniture into one small zip.

    Args:
        out: the zip to write.
        library: folder of the package's .sh3f files.
        licence: cc0 takes the public-domain models only; all adds those that ask for attribution.
        max_triangles: for a piece of about a metre; by default 5000 for cc0 and 2700 for all, about
            5 and 11 MB.
    """
    from rich.console import Console

    from scenes.furniture.packing import pack_library

    with Console(stderr=True).status("reading the catalogue") as status:
        count = pack_library(library, out, licence, max_triangles
                             or {"cc0": 5000, "all": 2700}[licence], report=status.update)
    print(f"{out}: {count} models, {out.stat().st_size / 1e6:.1f} MB")


VERBS = {"render": render, "show": show, "pack": pack, "ask": ask, "census": census}
