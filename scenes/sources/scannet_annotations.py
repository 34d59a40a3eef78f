"""Five ScanNet benchmarks as questions, from their published files.

ScanRefer_filtered_SPLIT.json (ScanRefer, and grouped by object Scan2Cap), multi3drefer_SPLIT.json,
ScanQA_v1.0_SPLIT.json, and for SQA3D v1_balanced_questions_SPLIT_scannetv2.json with
v1_balanced_sqa_annotations_SPLIT_scannetv2.json, these two also in a folder `balanced`.
"""
import csv
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from records.files import LARGE_JSON, read_json, reading, regular_file
from scenes.clip import Split
from scenes.questions.metrics import has_volume
from scenes.questions.question import COORD, Question
from scenes.sources.scannet import ScanNet

Dataset = Literal["scanrefer", "multi3drefer", "scan2cap", "scanqa", "sqa3d"]
DATASETS: tuple[Dataset, ...] = get_args(Dataset)
Item = dict[str, Any]
_FILES: dict[Dataset, str] = {
    "scanrefer": "ScanRefer_filtered_{}.json", "scan2cap": "ScanRefer_filtered_{}.json",
    "multi3drefer": "multi3drefer_{}.json", "scanqa": "ScanQA_v1.0_{}.json",
    "sqa3d": "v1_balanced_questions_{}_scannetv2.json"}
_SQA_ANSWERS = "v1_balanced_sqa_annotations_{}_scannetv2.json"
_LABELS = "scannetv2-labels.combined.tsv"
# ScanRefer's classes; every other label is "others"
_SCANREFER_CLASSES = {
    "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "desk", "curtain", "refrigerator", "shower curtain", "toilet", "sink", "bathtub"}


def load_annotations(source: ScanNet, dataset: Dataset, folder: Path | str, split: Split,
                     proposals: Path | str | None = None,
                     skip_missing: bool = False) -> list[Question]:
    """The questions of one benchmark about the scenes of `source`.

    proposals: a JSON of detected boxes, "scannet/SCENE" -> list of [cx,cy,cz, w,h,l]; by default
    the annotated boxes are the candidates. Raises ValueError for an annotation of a missing scene,
    object or volume; skip_missing leaves those out and prints their number.
    """
    boxes = _Boxes(source, read_proposals(Path(proposals)) if proposals else None, skip_missing)
    path = annotation_file(Path(folder), dataset, split)
    if not path.is_file():
        raise ValueError(f"{path}: missing; download the benchmark's files there")
    with reading(path, "usable annotations", "download it again"):
        found = _READERS[dataset](path, split, boxes)
    if boxes.skipped:
        reasons = [f"{why} ({n})" for why, n in sorted(boxes.skipped.items())[:3]]
        print(f"{folder}: left out {sum(boxes.skipped.values())} annotations: {'; '.join(reasons)}")
    return [question for question in found if question is not None]


def annotation_file(folder: Path, dataset: Dataset, split: Split) -> Path:
    """The published file that holds the benchmark's questions."""
    inner = folder / "balanced"
    root = inner if dataset == "sqa3d" and inner.is_dir() else folder
    return root / _FILES[dataset].format(split)


def read_proposals(path: Path) -> Mapping[str, Sequence]:
    """Detected boxes by "scannet/SCENE". Raises ValueError for any other file."""
    return read_json(path, 'give a JSON of "scannet/SCENE" -> six numbers a box', limit=LARGE_JSON,
                     kind=dict)


class _Boxes:
    """Makes questions with the candidate boxes of their scene."""

    def __init__(self, source: ScanNet, proposals: Mapping[str, Sequence] | None,
                 skip_missing: bool):
        self.source, self.proposals, self.skip_missing = source, proposals, skip_missing
        self.skipped: Counter[str] = Counter()

    def question(self, item: Item, split: Split, task: str, text: str, answers: Sequence[str] = (),
                 targets: Sequence[int] = (), kind: str = "") -> Question | None:
        """None for an annotation that is left out. targets: ScanNet's object ids."""
        scene = str(item["scene_id"])
        annotated = self.source.annotated_boxes(scene)
        ids = sorted(annotated)
        boxes = np.array([annotated[i][1] for i in ids], np.float32).reshape(-1, 6)
        lost = [t for t in targets if t not in annotated]
        fault = (f"no scene {scene}" if not self.source.has(scene) else
                 f"scene {scene} has no object {lost[0]}" if lost else "")
        rows = [] if fault else [ids.index(t) for t in targets]
        if not has_volume(boxes[rows]).all():
            fault = f"an object of scene {scene} has a box without volume"
        if fault and not self.skip_missing:
            raise ValueError(f"annotations: {fault} in {self.source.root}; download it, or leave "
                             "out such annotations with --only-present")
        if fault:
            self.skipped[fault] += 1
            return None
        count = None
        if self.proposals is not None and task in ("ground", "multi_ground", "caption"):
            offered = np.array(self.proposals.get(f"scannet/{scene}", []), np.float32)
            boxes = np.concatenate([offered.reshape(-1, 6), boxes])
            count = len(boxes) - len(ids)
            rows = [count + row for row in rows]
        return Question(f"{split}/{scene}", task, text, answers[0] if answers else None, None, (),
                        boxes, tuple(sorted(rows)), kind, tuple(answers), count)


def _scanrefer(path: Path, split: Split, boxes: _Boxes) -> list[Question | None]:
    items, kinds = _scanrefer_items(path)
    return [boxes.question(i, split, "ground", i["description"].capitalize(),
                           targets=[int(i["object_id"])], kind=kinds.get(_object(i), ""))
            for i in items]


def _scan2cap(path: Path, split: Split, boxes: _Boxes) -> list[Question | None]:
    """One question an object, with all its descriptions as references."""
    items, kinds = _scanrefer_items(path)
    by_object: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in items:
        by_object[_object(item)].append(item)
    out = []
    for key, group in by_object.items():
        captions = [i["description"].capitalize() for i in group]
        out.append(boxes.question(group[0], split, "caption", COORD, captions, [int(key[1])],
                                  kinds.get(key, "")))
    return out


def _multi3drefer(path: Path, split: Split, boxes: _Boxes) -> list[Question | None]:
    items = _items(path, scene_id=str, object_ids=list, description=str, eval_type=str)
    return [boxes.question(i, split, "multi_ground", i["description"].capitalize(),
                           targets=list(map(int, i["object_ids"])), kind=i["eval_type"])
            for i in items]


def _scanqa(path: Path, split: Split, boxes: _Boxes) -> list[Question | None]:
    """An answer's object_ids are no targets: the answer is words."""
    items = _items(path, scene_id=str, question=str, answers=list)
    return [boxes.question(i, split, "qa", i["question"], _texts(i["answers"])) for i in items]


def _sqa3d(path: Path, split: Split, boxes: _Boxes) -> list[Question | None]:
    """Training questions come once for every wording of their situation, as in Video-3D LLM."""
    rows = _items(path, "questions", question_id=(int, str), situation=str, question=str)
    by_id = {row["question_id"]: row for row in rows}
    out = []
    file = path.with_name(_SQA_ANSWERS.format(split))
    for item in _items(file, "annotations", question_id=(int, str), scene_id=str, answers=list):
        if item["question_id"] not in by_id:
            raise ValueError(f"{path}: answer to question {item['question_id']}, which is not "
                             "among the questions; download both files again")
        row = by_id[item["question_id"]]
        others = row.get("alternative_situation", []) if split == "train" else []
        answers = _texts([a["answer"] for a in item["answers"]])
        start = re.match(r"what|is|how|can|which", row["question"].lstrip().lower())
        kind = start[0] if start else "others"
        out += [boxes.question(item, split, "situated", f"{situation} {row['question']}", answers,
                               kind=kind) for situation in (row["situation"], *others)]
    return out


def _object(item: Item) -> tuple[str, str]:
    return item["scene_id"], str(item["object_id"])


def _scanrefer_items(path: Path) -> tuple[list[Item], dict[tuple[str, str], str]]:
    """ScanRefer's annotations, and (scene, object) -> "unique" or "multiple".

    An object is unique if no other annotated object of its scene is of the same of 18 classes: from
    "eval_type" where the file has it, else from ScanNet's label table beside it, else unknown ({}).
    """
    items = _items(path, scene_id=str, object_id=(int, str), object_name=str, description=str)
    if items and all("eval_type" in i for i in items):
        return items, {_object(i): str(i["eval_type"]) for i in items}
    table = path.with_name(_LABELS)
    if not table.is_file():
        return items, {}
    with regular_file(table).open(newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        class_of = {row["raw_category"]: row["nyu40class"] for row in rows}
    classes = {}
    for item in items:
        name = class_of.get(str(item["object_name"]).replace("_", " "), "")
        classes[_object(item)] = name if name in _SCANREFER_CLASSES else "others"
    counts = Counter((scene, name) for (scene, _), name in classes.items())
    return items, {key: "unique" if counts[key[0], name] == 1 else "multiple"
                   for key, name in classes.items()}


def _texts(values: Sequence[Any]) -> list[str]:
    if wrong := [value for value in values if not isinstance(value, str | int)]:
        raise ValueError(f"got the answer {str(wrong[0])[:40]}, expected text")
    return list(map(str, values))


def _items(path: Path, inside: str = "", **needed: type | tuple[type, ...]) -> list[Item]:
    """The entries of a file, in its field `inside` if given, with the types of their fields."""
    content = read_json(path, "not the published layout: download it again",
                        "download the benchmark's files there", LARGE_JSON,
                        kind=dict if inside else object)
    items = content.get(inside) if inside else content
    for i, item in enumerate(items if isinstance(items, list) else [items]):
        lacking = [n for n, kinds in needed.items()
                   if not isinstance(item, dict) or not isinstance(item.get(n), kinds)]
        if lacking or not isinstance(items, list):
            raise ValueError(f"{path}: entry {i} lacks {', '.join(lacking) or 'a list around it'}, "
                             "or has another type there; download it again")
    return items


_READERS: dict[Dataset, Callable[[Path, Split, _Boxes], list[Question | None]]] = {
    "scanrefer": _scanrefer, "multi3drefer": _multi3drefer, "scan2cap": _scan2cap,
    "scanqa": _scanqa, "sqa3d": _sqa3d}
