"""The verbs of `vega3d scenes`."""
from pathlib import Path
from shlex import quote
from typing import Annotated, Literal

import tyro

from records.options import Count, CountOrNone, Frames, Pixels, Processes, Seed

LIBRARY = Path("/usr/share/sweethome3d/furniture")
Benchmark = Literal["scanrefer", "multi3drefer", "scan2cap", "scanqa", "sqa3d"]


def render(n: Count = 200, out: Path = Path("clips"), seed: Seed = 0, frames: Frames = 9,
           size: Pixels = 224, clips_per_room: Count = 1, furniture: Path | None = None,
           held_out: tuple[CountOrNone, CountOrNone] | None = None,
           workers: Processes | None = None,
           style: Literal["plain", "filmed", "mixed"] = "plain") -> None:
    """Renders clips of furnished rooms into a folder; the same command resumes after a stop.

    Args:
        n: number of clips; 80 % of their rooms are for training, 10 % each for validation and test.
        out: folder to write SPLIT/ID.safetensors and scenes.json to.
        seed: another seed gives other rooms.
        frames: frames a clip.
        size: pixels, square.
        clips_per_room: camera paths in each room.
        furniture: a pack made by `vega3d scenes pack`; by default the public-domain one that ships.
        held_out: rooms for validation and for test instead of 10 % each.
        workers: processes, 0 renders in this one; by default one less than cores, at most 15.
        style: filmed: as phones film: close-ups, rolling cameras, clutter, mirrors, moving things;
            mixed: every second room.
    """
    from scenes.clip import SPLITS
    from scenes.rooms.source import RoomSource
    from scenes.rooms.writer import default_workers, render_folder

    rooms = -(-n // clips_per_room)
    val, test = held_out or 2 * (round(rooms * 0.1),)
    if val + test > rooms:
        raise ValueError(f"render: --held-out {val} {test} are more than the {rooms} rooms of --n")
    source = RoomSource(train=rooms - val - test, val=val, test=test,
                        clips_per_room=clips_per_room, frames=frames, size=size, seed=seed,
                        pack=furniture, style=style)
    ids = [i for split in SPLITS for i in source.ids(split)][:n]
    rendered = render_folder(source, ids, out, default_workers() if workers is None else workers)
    print(f"{out}: {len(ids)} clips, {rendered} new; look at one with: vega3d scenes show "
          + quote(f"{out}/{ids[0]}.safetensors"))


def import_clips(dataset: Annotated[Literal["scannet", "vsibench"], tyro.conf.Positional],
                 root: Annotated[Path, tyro.conf.Positional], out: Path, frames: Frames = 32,
                 size: Pixels = 384, annotations: Path | None = None, processed: Path | None = None,
                 benchmarks: tuple[Benchmark, ...] = (), proposals: tuple[Path, ...] = (),
                 only_present: bool = False) -> None:
    """Imports ScanNet or VSI-Bench with its questions into a folder, as render writes one.

    `vega3d teacher train --clips OUT` trains on these questions and scores on the test split:
    ScanNet's val scenes, VSI-Bench's videos. A folder may hold both. The same command resumes.

    Args:
        dataset: scannet, or vsibench.
        root: its folder, laid out as published.
        out: folder to write SPLIT/ID.safetensors, questions.json and scenes.json to.
        frames: frames a clip, spread evenly over the scene.
        size: pixels, square.
        annotations: scannet: folder with the files of ScanRefer, Multi3DRefer, ScanQA and SQA3D.
        processed: scannet: instead, folder with Video-3D LLM's DATASET_SPLIT_llava_style.json.
        benchmarks: scannet: which of the five; by default all whose files are there.
        proposals: scannet: JSON files of candidate boxes, each for the split whose scenes it names.
        only_present: leave out questions about scenes, objects or videos that are missing.
    """
    from scenes.sources.importing import import_scannet, import_vsibench, write_import

    if dataset == "scannet":
        imported = import_scannet(root, frames, size, annotations, processed, benchmarks, proposals,
                                  only_present)
    elif annotations or processed or benchmarks or proposals:
        raise ValueError("import: --annotations, --processed, --benchmarks and --proposals are for "
                         "scannet; vsibench has its questions in test.jsonl")
    else:
        imported = import_vsibench(root, frames, size, only_present)
    clips, questions = write_import(imported, out)
    print(f"{out}: {clips} clips, {questions} questions; train on them with: vega3d teacher train "
          f"--clips {quote(str(out))}")


def show(clip: Annotated[Path, tyro.conf.Positional], out: Path | None = None) -> None:
    """Writes a contact sheet of one clip: colour, depth, instances, normals.

    Args:
        clip: a .safetensors file that `vega3d scenes render` wrote; or a picture, a video, or a
            folder of videos or images, whose first clip is shown.
        out: the PNG; by default the clip's name with .png (a picture's with _sheet.png) in the
            current folder.
    """
    from records.ffmpeg import VIDEOS
    from records.images import IMAGES
    from scenes.clip import load_clip
    from scenes.show import contact_sheet, save_sheet
    from scenes.sources.video import VideoSource

    picture = clip.is_file() and clip.suffix.lower() in IMAGES
    out = out or Path(f"{clip.stem}{'_sheet' * picture}.png")
    if clip.is_dir() or picture or clip.suffix.lower() in VIDEOS:
        source = VideoSource(clip, frames=1 if picture else 9)
        sheet = contact_sheet(source.clip(source.ids("train")[0]))
    else:
        sheet = contact_sheet(load_clip(clip))
    save_sheet(sheet, out)
    print(out)


def ask(clip: Annotated[Path, tyro.conf.Positional], task: str | None = None,
        seed: Seed = 0) -> None:
    """Prints the questions that a rendered clip supports, with their answers.

    Args:
        clip: a .safetensors file that `vega3d scenes render` wrote.
        task: "ground", "multi_ground", "caption", "situated", or "vsi:" and a type of VSI-Bench.
        seed: another seed draws other questions.
    """
    from scenes.clip import load_clip
    from scenes.questions.question import TASKS
    from scenes.questions.question_statistics import print_questions

    print_questions(load_clip(clip), (task,) if task else TASKS, seed)


def census(out: Path = Path("runs/rooms_census.json"), rooms: Count = 100,
           held_out: Count = 40, frames: Frames = 9, step: Frames = 1, size: Pixels = 224,
           seed: Seed = 0, workers: Processes | None = None) -> None:
    """Counts the questions that rendered rooms give, and scores baselines that see no frames.

    Args:
        out: the result file.
        rooms: training rooms, one clip each.
        held_out: test rooms to score the baselines on.
        frames: frames a clip.
        step: render so many times as many frames and use every step-th, to cover more of a room.
        size: pixels, square.
        seed: of the rooms and the questions.
        workers: processes; by default one less than there are cores, at most 15.
    """
    from records.environment import environment
    from records.files import prepare_folder
    from records.progress import track
    from records.results import measured, save
    from scenes.clip import Strided
    from scenes.questions.balance import question_set
    from scenes.questions.question_statistics import describe, question_statistics
    from scenes.rooms.source import RoomSource, render_clips
    from scenes.rooms.writer import default_workers

    prepare_folder(out.parent)  # fails now, not at the end
    source = Strided(RoomSource(train=rooms, val=0, test=held_out, frames=step * (frames - 1) + 1,
                                size=size, seed=seed), step)
    workers = default_workers() if workers is None else workers
    sets = []
    for ids in (source.ids("train"), source.ids("test")):
        clips = render_clips(source, ids, workers)
        sets.append(question_set(track(clips, f"questions of {len(ids)} rooms", len(ids)),
                                 seed=seed))
    rows = question_statistics(sets[0], sets[1], rooms, held_out)
    save(measured(out.stem, rows, environment()), out)
    print("\n".join([*map(describe, rows), str(out)]))


def pack(out: Path, library: Path = LIBRARY, licence: Literal["cc0", "all"] = "cc0",
         max_triangles: Count | None = None) -> None:
    """Packs the Debian package sweethome3d-furniture into one small zip.

    Args:
        out: the zip to write.
        library: folder of the package's .sh3f files.
        licence: cc0 takes the public-domain models only; all adds those that ask for attribution.
        max_triangles: for a piece of about a metre; by default 5000 (cc0, 5 MB), 2700 (all, 11 MB).
    """
    from rich.console import Console

    from scenes.furniture.packing import pack_library

    most = max_triangles or {"cc0": 5000, "all": 2700}[licence]
    with Console(stderr=True).status("reading the catalogue") as status:
        count = pack_library(library, out, licence, most, report=status.update)
    print(f"{out}: {count} models, {out.stat().st_size / 1e6:.1f} MB")


VERBS = {"render": render, "show": show, "pack": pack, "ask": ask, "import": import_clips,
         "census": census}
