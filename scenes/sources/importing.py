"""Published data sets as a folder of clips: SPLIT/ID.safetensors, scenes.json and questions.json.

A folder may hold several data sets, if their clips have the same number and size of frames.
"""
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from records import manifest
from records.files import digest, make_folder, read_json, write_json
from records.progress import track
from scenes.boxes import iou
from scenes.clip import Split, save_clip
from scenes.questions.metrics import has_volume
from scenes.questions.question import Question
from scenes.questions.stored import QUESTIONS_FILE, by_clip, load_questions, save_questions
from scenes.rooms.writer import check_disk_space, is_complete
from scenes.sources import scannet_annotations, video3dllm
from scenes.sources.scannet import ScanNet
from scenes.sources.scannet_annotations import DATASETS, Dataset
from scenes.sources.vsibench import VSIBench

# ScanNet's benchmarks publish scores on its val scenes, so those are a folder's test split
_SCANNET_SPLITS: dict[Split, Split] = {"train": "train", "val": "test"}


@dataclass(frozen=True)
class Import:
    """What a folder takes from one data set."""
    name: str
    source: ScanNet | VSIBench
    clips: dict[str, str]      # id in the folder -> id in the source
    questions: list[Question]  # about ids in the folder


def import_vsibench(root: Path, frames: int, size: int, only_present: bool) -> Import:
    """VSI-Bench's videos and questions; only_present leaves out those whose video is missing."""
    source = VSIBench(root, frames, size)
    questions = source.questions(only_present)
    if not questions:
        raise ValueError(f"{root}: holds none of the videos; unpack scannet.zip, scannetpp.zip or "
                         "arkitscenes.zip of nyu-visionx/VSI-Bench there")
    return Import("vsibench", source, {q.clip_id: q.clip_id for q in questions}, questions)


def import_scannet(root: Path, frames: int, size: int, annotations: Path | None = None,
                   processed: Path | None = None, benchmarks: Sequence[Dataset] = (),
                   proposals: Sequence[Path] = (), only_present: bool = False) -> Import:
    """ScanNet's train and val scenes, the latter as the test split, with their questions.

    annotations: folder of the benchmarks' own files; processed: folder of Video-3D LLM's instead.
    benchmarks: by default those whose files are in the folder. proposals: JSON files of boxes, each
    for the split whose scenes it names. Raises ValueError naming what is missing or laid out
    otherwise; only_present leaves out questions about what is missing.
    """
    if annotations is not None and processed is not None:
        raise ValueError("import: got --annotations and --processed; give one of them")
    source = ScanNet(root, frames, size)
    clips: dict[str, str] = {}
    questions: list[Question] = []
    for split, target in _SCANNET_SPLITS.items():
        ids = source.ids(split)
        clips |= {f"{target}/{i.removeprefix(f'{split}/')}": i for i in ids}
        boxes = _proposals_for(ids, proposals)
        for name in _benchmarks(benchmarks, annotations, processed, split) if ids else ():
            if annotations is not None:
                found = scannet_annotations.load_annotations(source, name, annotations, split,
                                                             boxes, only_present)
            elif processed is not None:
                path = video3dllm.processed_file(processed, name, split)
                found = video3dllm.load_processed(path, split, boxes)
            questions += [replace(q, clip_id=f"{target}/{q.clip_id.removeprefix(f'{split}/')}")
                          for q in _with_usable_boxes(found, name, split)]
    if not clips:
        raise ValueError(f"{root}: posed_images/ holds no scene of scannetv2_train.txt or "
                         "scannetv2_val.txt; extract their frames there")
    if not questions and (annotations or processed):
        raise ValueError(f"{annotations or processed}: holds no questions about the scenes of "
                         f"{root}; the benchmarks are {', '.join(DATASETS)}")
    return Import("scannet", source, clips, _about(clips, questions, only_present))


def write_import(imported: Import, out: Path) -> tuple[int, int]:
    """Writes clips that `out` lacks, then questions.json and scenes.json; returns both counts."""
    source = imported.source
    card = _card(imported, out)
    make_folder(out)
    shape = (source.frames, 3, source.size, source.size)
    missing = [i for i in imported.clips if not is_complete(out / f"{i}.safetensors", i, shape)]
    check_disk_space(out, len(missing), source.frames * source.size**2 * 7)  # colour, depth
    manifest.forget(out / f"{i}.safetensors" for i in missing)
    written = {}
    for clip_id in track(missing, f"importing {imported.name}"):
        clip = replace(source.clip(imported.clips[clip_id]), id=clip_id)
        if len(clip.frames) < source.frames:
            raise ValueError(f"{clip_id}: has only {len(clip.frames)} frames, expected "
                             f"{source.frames}; import with --frames {len(clip.frames)}")
        path = (out / f"{clip_id}.safetensors").absolute()
        written[path] = save_clip(clip, path)
    questions = by_clip(imported.questions)
    stored = {i: q for i, q in (load_questions(out) or {}).items() if i not in imported.clips}
    if stored or questions:
        save_questions(stored | questions, out)
    files = sorted(out.glob("*/*.safetensors"))
    found = zip(files, manifest.read(files, written), strict=True)
    card["key"] = f"import-{digest({str(path.relative_to(out)): sha for path, (_, sha) in found})}"
    write_json(card, out / "scenes.json")
    manifest.create(out)
    manifest.record(written, written)
    manifest.create(out, [*files, out / "scenes.json", out / QUESTIONS_FILE])
    return len(imported.clips), len(imported.questions)


def _benchmarks(names: Sequence[Dataset], annotations: Path | None, processed: Path | None,
                split: Split) -> list[Dataset]:
    """The named ones; without names those whose file of the split is there."""
    folder, file = annotations, scannet_annotations.annotation_file
    if processed is not None:
        folder, file = processed, video3dllm.processed_file
    if folder is None:
        return []
    return list(names) or [name for name in DATASETS if file(folder, name, split).is_file()]


def _proposals_for(ids: Sequence[str], files: Sequence[Path]) -> Path | None:
    scenes = {f"scannet/{i.rpartition('/')[2]}" for i in ids}
    read = scannet_annotations.read_proposals
    return next((path for path in files if not scenes.isdisjoint(read(path))), None)


def _with_usable_boxes(questions: Sequence[Question], name: str, split: Split) -> list[Question]:
    """The questions without candidate boxes of no volume, which hold no token of any frame.

    Questions about such targets are left out, and their number printed. Where boxes are offered, a
    training target becomes the offered box that overlaps it most, by at least half.
    """
    out = []
    for question in questions:
        valid = has_volume(question.boxes)
        if not valid[list(question.targets)].all():
            continue
        row = np.cumsum(valid) - 1  # of each valid box
        count = None if question.proposals is None else int(valid[:question.proposals].sum())
        question = replace(question, boxes=question.boxes[valid], proposals=count,
                           targets=tuple(int(row[t]) for t in question.targets))
        if split == "train" and question.targets and len(question.offered) and count is not None:
            overlaps = iou(question.boxes[list(question.targets)], question.offered)  # [targets,K]
            if overlaps.max(1).min() < 0.5:
                continue
            question = replace(question, targets=tuple(sorted(set(overlaps.argmax(1).tolist()))))
        out.append(question)
    if len(out) < len(questions):
        print(f"{name} {split}: left out {len(questions) - len(out)} questions whose target box "
              "has no volume or overlaps no proposal")
    return out


def _about(clips: dict[str, str], questions: list[Question], only_present: bool) -> list[Question]:
    """The questions about these clips; raises ValueError for another one unless only_present."""
    lost = sorted({q.clip_id for q in questions} - set(clips))
    if lost and not only_present:
        raise ValueError(f"import: no frames of {lost[0]} and {len(lost) - 1} other scenes with "
                         "questions; extract them, or leave them out with --only-present")
    return [q for q in questions if q.clip_id in clips]


def _card(imported: Import, out: Path) -> dict:
    """The folder's scenes.json with this import. Raises ValueError if the folder cannot take it."""
    source, path = imported.source, out / "scenes.json"
    frames = {"frames": source.frames, "size": source.size}
    card: dict[str, Any] = {"imports": {}, **frames}
    if path.is_file():
        card = read_json(path, "use another folder", kind=dict, schema=1)
    if "imports" not in card or {k: card.get(k) for k in frames} != frames:
        kind = "imported clips" if "imports" in card else "rendered rooms"
        raise ValueError(f"{out}: holds {kind} of {card.get('frames')} frames of "
                         f"{card.get('size')} px, expected imported clips of {source.frames} "
                         f"frames of {source.size} px; use another folder")
    card["imports"][imported.name] = {"root": str(source.root), "clips": len(imported.clips),
                                      "questions": len(imported.questions)}
    return card | {"schema": 1,
                   "versions": {name: version(name) for name in ("vega3d-edge", "numpy")}}
