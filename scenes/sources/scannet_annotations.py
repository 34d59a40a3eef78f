"""The five ScanNet benchmarks as questions, from their files as they are published.

ScanRefer_filtered_SPLIT.json (ScanRefer, and grouped by object Scan2Cap), multi3drefer_SPLIT.json,
ScanQA_v1.0_SPLIT.json, and for SQA3D v1_balanced_questions_SPLIT_scannetv2.json with
v1_balanced_sqa_annotations_SPLIT_scannetv2.json.
"""
import csv
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scenes.clip import Split
from scenes.questions.metrics import has_volume
from scenes.questions.question import COORD, Question
from scenes.sources.scannet import ScanNet

Dataset = Literal["scanrefer", "multi3drefer", "scan2cap", "scanqa", "sqa3d"]
Item = dict[str, Any]
_LABELS = "scannetv2-labels.combined.tsv"
_NAMED = {
    "cabinet",
    "bed",
    "chair",
    "sofa",
    "table",
    "door",
    "window",
    "bookshelf",
    "picture",
    "counter",
    "desk",
    # ScanRefer's; all else is "others"
    "curtain",
    "refrigerator",
    "shower curtain",
    "toilet",
    "sink",
    "bathtub"
}


def load_annotations(source: ScanNet, dataset: Dataset, folder: Path | str, split: Split,
              proposals: Path | str | None = None, skip_missing: bool = False) -> list[Question]:
    """The questions of one benchmark about the scenes of `source`.

    folder: where the benchmark's files are. proposals: a JSON of detected boxes, "scannet/SCENE" ->
    list of [cx,cy,cz, w,h,l] (Video-3D LLM's scannet_val_pred_box.json); without it the annotated
    boxes are the candidates. Raises ValueError for a file that is missing or laid out otherwise,
    and for an annotation that names a scene or object that is not here or whose box has no volume;
    with skip_missing those are left out, and how many is printed.
    """
    maker, path = _READERS[dataset], Path(folder)
    boxes = _Boxes(source, read_proposals(Path(proposals)) if proposals else None, skip_missing)
    found = [q for q in maker(path, split, boxes) if q is not None]
    if boxes.skipped:
        print(f"{folder}: left out {sum(boxes.skipped.values())} annotations: " + "; ".join(
            f"{why} ({n})" for why, n in sorted(boxes.skipped.items())[:3]))
    return found


def read_proposals(path: Path) -> Mapping[str, Sequence]:
    """Detected boxes by "scannet/SCENE"; raises ValueError if the file is no such JSON."""
    try:
        content = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f'{path}: not a JSON of proposals, "scannet/SCENE" -> boxes ({error})') from error
    if not isinstance(content, dict):
        raise ValueError(
            f'{path}: got a {type(content).__name__}, expected "scannet/SCENE" -> six numbers a box'
        )
    return content


class _Boxes:
    """The candidate boxes of a scene, and which are meant."""

    def __init__(self, source: ScanNet, proposed: Mapping[str, Sequence] | None,
                 skip_missing: bool):
        self.source, self.proposed, self.skip_missing = source, proposed, skip_missing
        self.skipped: dict[str, int] = defaultdict(int)

    def ask(self, item: Item, split: Split, task: str, text: str, answers: Sequence[str] = (),
            targets: Sequence[int] = (), kind: str = "") -> Question | None:
        """None for an annotation that is left out."""
        scene = str(item["scene_id"])
        known = self.source.annotated_boxes(scene)
        numbers = sorted(known)
        boxes = np.array([known[n][1] for n in numbers], np.float32).reshape(-1, 6)
        lost = [t for t in targets if t not in known]
        fault = (f"no scene {scene}" if not self.source.has(scene) else
                 f"scene {scene} has no object {lost[0]}" if lost else "")
        meant = [] if fault else [numbers.index(t) for t in targets]
        if not has_volume(boxes[meant]).all():
            fault = f"an object of scene {scene} has a box without volume"
        if fault:
            self._refuse(fault)
            return None
        count = None
        if self.proposed is not None and task in ("ground", "multi_ground", "caption"):
            first = np.array(self.proposed.get(f"scannet/{scene}", []), np.float32).reshape(-1, 6)
            count, meant, boxes = len(first), [len(first) + m
                                               for m in meant], np.concatenate([first, boxes])
        return Question(f"{split}/{scene}", task, text, answers[0] if answers else None, None, (),
                        boxes, tuple(sorted(meant)), kind, tuple(answers), count)

    def _refuse(self, why: str) -> None:
        if not self.skip_missing:
            raise ValueError(
                f"annotations: {why} in {self.source.root}; download it, or leave such annotations "
                "out with skip_missing")
        self.skipped[why] += 1


def _scanrefer(folder: Path, split: Split, boxes: _Boxes) -> list[Question | None]:
    items = _items(folder / f"ScanRefer_filtered_{split}.json", "scene_id", "object_id",
                   "object_name", "description")
    kinds = _unique_or_multiple(items, folder)
    return [
        boxes.ask(i, split, "ground",
                  str(i["description"]).capitalize(), targets=[int(i["object_id"])], kind=kinds.get(
                      (i["scene_id"], str(i["object_id"])), "")) for i in items
    ]


def _scan2cap(folder: Path, split: Split, boxes: _Boxes) -> list[Question | None]:
    """One question an object, with all its descriptions as references."""
    items = _items(folder / f"ScanRefer_filtered_{split}.json", "scene_id", "object_id",
                   "object_name", "description")
    kinds = _unique_or_multiple(items, folder)
    by_object: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in items:
        by_object[item["scene_id"], str(item["object_id"])].append(item)
    return [
        boxes.ask(found[0], split, "caption", COORD,
                  [str(i["description"]).capitalize() for i in found], [int(number)],
                  kinds.get((scene, number), "")) for (scene, number), found in by_object.items()
    ]


def _multi3drefer(folder: Path, split: Split, boxes: _Boxes) -> list[Question | None]:
    items = _items(folder / f"multi3drefer_{split}.json", "scene_id", "object_ids", "description",
                   "eval_type")
    return [
        boxes.ask(i, split, "multi_ground",
                  str(i["description"]).capitalize(), targets=[int(n) for n in i["object_ids"]],
                  kind=str(i["eval_type"])) for i in items
    ]


def _scanqa(folder: Path, split: Split, boxes: _Boxes) -> list[Question | None]:
    """The object_ids of an answer are no targets: the answer is words."""
    items = _items(folder / f"ScanQA_v1.0_{split}.json", "scene_id", "question", "answers")
    return [
        boxes.ask(i, split, "qa", str(i["question"]), [str(a) for a in i["answers"]]) for i in items
    ]


def _sqa3d(folder: Path, split: Split, boxes: _Boxes) -> list[Question | None]:
    """Training questions come once for every wording of their situation, as Video-3D LLM trains on
    them."""
    root = folder / "balanced" if (folder / "balanced").is_dir() else folder
    asked = {
        q["question_id"]: q
        for q in _items(root / f"v1_balanced_questions_{split}_scannetv2.json", "question_id",
                        "situation", "question", inside="questions")
    }
    out = []
    for item in _items(root / f"v1_balanced_sqa_annotations_{split}_scannetv2.json", "question_id",
                       "scene_id", "answers", inside="annotations"):
        if item["question_id"] not in asked:
            raise ValueError(
                f"{root}: answer to question {item['question_id']}, which is not among the "
                "questions; download both files again")
        question = asked[item["question_id"]]
        kind = _sqa_kind(question["question"])
        situations = [
            question["situation"],
            *(question.get("alternative_situation", []) if split == "train" else [])
        ]
        answers = [str(a["answer"]) for a in item["answers"]]
        out += [
            boxes.ask(item, split, "situated", f"{s} {question['question']}", answers, kind=kind)
            for s in situations
        ]
    return out


def _sqa_kind(question: str) -> str:
    start = question.lstrip().lower()
    return next((kind for kind in ("what", "is", "how", "can", "which") if start.startswith(kind)),
                "others")


def _unique_or_multiple(items: Sequence[Item], folder: Path) -> dict[tuple[str, str], str]:
    """(scene, object) -> unique or multiple, by how many annotated objects of a scene share one of
    18 classes.

    From "eval_type" where the file has it, else from ScanNet's label table beside it; without
    either nothing is known.
    """
    if items and all("eval_type" in i for i in items):
        return {(i["scene_id"], str(i["object_id"])): str(i["eval_type"]) for i in items}
    if not (folder / _LABELS).is_file():
        return {}
    with (folder / _LABELS).open(newline="") as file:
        class_of = {
            row["raw_category"]: row["nyu40class"]
            for row in csv.DictReader(file, delimiter="\t")
        }
    classes = {}
    for item in items:
        name = class_of.get(str(item["object_name"]).replace("_", " "), "")
        classes[item["scene_id"], str(item["object_id"])] = name if name in _NAMED else "others"
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for (scene, _), name in classes.items():
        counts[scene, name] += 1
    return {
        key: "unique" if counts[key[0], name] == 1 else "multiple"
        for key, name in classes.items()
    }


def _items(path: Path, *needed: str, inside: str = "") -> list[Item]:
    """The list in a JSON file, each with the needed fields."""
    try:
        content = json.loads(path.read_text())
        items = content[inside] if inside else content
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: missing; download the benchmark's files into that folder") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not the published layout ({error!r}); download it again") from error
    for i, item in enumerate(items if isinstance(items, list) else [items]):
        lacking = [n for n in needed if not isinstance(item, dict) or n not in item]
        if lacking or not isinstance(items, list):
            raise ValueError(
                f"{path}: entry {i} lacks {', '.join(lacking) or 'a list around it'}; download it "
                "again"
            )
    return items


_READERS: dict[str, Callable[[Path, Split, _Boxes], list[Question | None]]] = {
    "scanrefer": _scanrefer, "multi3drefer": _multi3drefer, "scan2cap": _scan2cap,
    "scanqa": _scanqa, "sqa3d": _sqa3d
}
