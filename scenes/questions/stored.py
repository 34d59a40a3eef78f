"""Questions of published benchmarks, stored beside a folder's clips in FOLDER/questions.json."""
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from records.files import LARGE_JSON, atomic_write, read_json, to_json
from scenes.questions.question import Question

QUESTIONS_FILE = "questions.json"
ByClip = dict[str, list[Question]]


def by_clip(questions: Iterable[Question]) -> ByClip:
    """The questions of each clip id, in their order."""
    out: ByClip = {}
    for question in questions:
        out.setdefault(question.clip_id, []).append(question)
    return out


def save_questions(questions: Mapping[str, Sequence[Question]], folder: Path) -> None:
    """Writes FOLDER/questions.json; each distinct box of a clip is stored once."""
    clips = {clip_id: _encode(of_clip) for clip_id, of_clip in questions.items()}
    with atomic_write(folder / QUESTIONS_FILE) as scratch:
        scratch.write_text(to_json({"schema": 1, "clips": clips}))


def load_questions(folder: Path) -> ByClip | None:
    """Clip id -> questions; None if the folder has none. Raises ValueError for a damaged file."""
    path = folder / QUESTIONS_FILE
    if not path.is_file():
        return None
    content = read_json(path, "import it again", limit=LARGE_JSON, schema=1)
    try:
        return {clip_id: _decode(clip_id, of_clip) for clip_id, of_clip in content["clips"].items()}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(f"{path}: not a complete questions file ({error}); import it again with: "
                         "vega3d scenes import") from error


def tuples_of(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a question that JSON holds as lists."""
    tuples = {name: tuple(stored[name]) for name in ("options", "targets", "answers")}
    return tuples | {"mentions": tuple(map(tuple, stored.get("mentions", ())))}


def _encode(questions: Sequence[Question]) -> dict[str, Any]:
    rows: dict[tuple[float, ...], int] = {}
    out = []
    for question in questions:
        boxes = [rows.setdefault(tuple(box), len(rows)) for box in question.boxes.tolist()]
        content = asdict(question) | {"boxes": boxes}
        del content["clip_id"]
        out.append(content)
    return {"boxes": list(rows), "questions": out}


def _decode(clip_id: str, content: dict[str, Any]) -> list[Question]:
    out = []
    for stored in content["questions"]:
        boxes = [content["boxes"][i] for i in stored["boxes"]]
        width = len(boxes[0]) if boxes else 7
        tuples = tuples_of(stored)
        array = np.array(boxes, np.float32).reshape(-1, width)
        out.append(Question(clip_id, **{**stored, **tuples, "boxes": array}))
    return out
