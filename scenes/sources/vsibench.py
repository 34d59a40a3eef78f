"""VSI-Bench (arXiv 2412.14171) as published: nyu-visionx/VSI-Bench, unpacked into one folder.

ROOT/test.jsonl                    a question a line: id, dataset, scene_name, question_type,
                                   question, options, ground_truth
ROOT/DATASET/SCENE.mp4             from scannet.zip, scannetpp.zip and arkitscenes.zip
"""
from pathlib import Path
from typing import Any

import numpy as np

from records.ffmpeg import decode, probe
from records.files import LARGE_JSON, parse_json, read_text
from scenes.clip import Clip, Split
from scenes.questions.metrics import number_in
from scenes.questions.question import NO_BOXES, NUMERIC, VSI_TYPES, Question

_FIELDS = ("id", "dataset", "scene_name", "question_type", "question", "ground_truth")


class VSIBench:
    """Videos as clips test/DATASET-SCENE of `frames` frames, squashed to `size` px square."""

    def __init__(self, root: Path | str, frames: int = 32, size: int = 384):
        self.root, self.frames, self.size = Path(root), frames, size
        if frames < 1 or size < 1:
            raise ValueError(f"vsibench: got frames={frames}, size={size}, expected 1 or more")
        self.rows = _rows(self.root / "test.jsonl")

    def ids(self, split: Split) -> list[str]:
        """The scenes of all questions, also those whose video is missing."""
        return list(dict.fromkeys(map(_clip_id, self.rows))) if split == "test" else []

    def clip(self, clip_id: str) -> Clip:
        dataset, _, scene = clip_id.removeprefix("test/").partition("-")
        path = self.root / dataset / f"{scene}.mp4"
        if not path.is_file():
            raise ValueError(f"vsibench: no video {path}; unpack {dataset}.zip of VSI-Bench there")
        return Clip(id=clip_id, frames=_evenly_spaced(path, self.frames, self.size))

    def questions(self, only_present: bool = False) -> list[Question]:
        """Every question. Raises ValueError if a video is missing; only_present leaves it out."""
        lost = sorted({row["dataset"] for row in self.rows if not self._has_video(row)})
        if lost and not only_present:
            raise ValueError(f"vsibench: {self.root} lacks videos of {', '.join(lost)}; unpack "
                             "their zip files there, or leave them out with --only-present")
        return [_question(row) for row in self.rows if self._has_video(row)]

    def _has_video(self, row: dict[str, Any]) -> bool:
        return (self.root / row["dataset"] / f"{row['scene_name']}.mp4").is_file()


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ValueError(f"{path}: missing; download it from nyu-visionx/VSI-Bench, as .jsonl")
    rows = []
    for number, line in enumerate(read_text(path, LARGE_JSON).splitlines(), 1):
        try:
            row = parse_json(line)
            lacking = [name for name in _FIELDS if name not in row]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}:{number}: not a JSON object ({error}); download the file "
                             "again") from error
        fault = f"lacks {', '.join(lacking)}" if lacking else ""
        if not lacking and row["question_type"] not in VSI_TYPES:
            fault = f"has question_type {row['question_type']!r}"
        if fault:
            raise ValueError(f"{path}:{number}: {fault}; expected VSI-Bench's published test.jsonl")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: holds no question; download it again")
    return rows


def _question(row: dict[str, Any]) -> Question:
    task, answer = f"vsi:{row['question_type']}", str(row["ground_truth"])
    numeric = task in NUMERIC
    number = number_in(answer) if numeric else None
    options = tuple(map(str, row.get("options") or ()))
    if numeric != (number is not None and number > 0) or numeric == bool(options):
        raise ValueError(
            f"vsibench: question {row['id']} of {row['question_type']} has the answer {answer!r} "
            f"and {len(options)} options; expected a number above 0, or a letter and options")
    text = str(row["question"])
    return Question(_clip_id(row), task, text, answer, number, options, NO_BOXES, ())


def _clip_id(row: dict[str, Any]) -> str:
    return f"test/{row['dataset']}-{row['scene_name']}"


def _evenly_spaced(path: Path, frames: int, size: int) -> np.ndarray:
    """[T,3,size,size] uint8 from the first frame to the last; a shorter video repeats frames."""
    count = len(probe(path).times)
    wanted, numbers = np.unique(np.linspace(0, count - 1, frames).astype(int), return_inverse=True)
    terms = [f"eq(n\\,{i})" for i in wanted]
    while len(terms) > 1:  # in pairs: ffmpeg refuses a long sum as nested too deep
        terms = [f"({'+'.join(terms[i:i + 2])})" for i in range(0, len(terms), 2)]
    return decode(path, f"select={terms[0]},scale={size}:{size}", size, len(wanted))[numbers]
