"""The same five benchmarks from the files on which VEGA-3D trains and tests.

DATASET_SPLIT_llava_style.json of zd11024/Video-3D-LLM_data; entries hold prompt, answer and boxes.
"""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from records.files import LARGE_JSON, read_json
from scenes.clip import Split
from scenes.questions.question import PROMPTS, Question
from scenes.sources.scannet_annotations import Dataset, read_proposals

_TASKS = {"scanrefer": "ground", "multi3drefer": "multi_ground", "scan2cap": "caption",
          "scanqa": "qa", "sqa3d": "situated"}
_NO_BOXES = np.zeros((0, 6), np.float32)


def processed_file(folder: Path, dataset: Dataset, split: Split) -> Path:
    return folder / f"{dataset}_{split}_llava_style.json"


def load_processed(path: Path | str, split: Split,
                   proposals: Path | str | None = None) -> list[Question]:
    """The questions of one file, about clips SPLIT/SCENE.

    proposals: a JSON of candidate boxes, "scannet/SCENE" -> list of six numbers
    (scannet_train_gt_box.json). An entry whose box has no volume stays, and scores 0.
    """
    path = Path(path)
    offered = read_proposals(Path(proposals)) if proposals else None
    out = []
    entries = read_json(path, "download it from zd11024/Video-3D-LLM_data", limit=LARGE_JSON,
                        kind=list)
    for number, item in enumerate(entries):
        try:
            out.append(_question(item, split, offered))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"{path}: entry {number} cannot be read ({type(error).__name__}: "
                             f"{error}); expected the layout of Video-3D LLM's files") from error
    return out


def _question(item: Mapping[str, Any], split: Split,
              proposals: Mapping[str, Any] | None) -> Question:
    about = item["metadata"]
    task = _TASKS[str(about["dataset"]).lower()]
    prompt, answer = (str(turn["value"]) for turn in item["conversations"][:2])
    text = _without_prompt(prompt, task)
    targets, offered, count = _NO_BOXES, _NO_BOXES, None
    answers = tuple(map(str, about.get("answers") or item.get("annotations") or [answer]))
    if task in ("ground", "multi_ground"):
        targets, answers = _boxes(item["box"]), ()
        if proposals is not None:
            offered = _boxes(proposals[item["video"]])
    elif task == "caption":
        targets = _boxes(item["gt_box"])
        annotated = item["box_input"] is None and split == "train"
        offered = targets if annotated else _boxes(item["box_input"] or [])
    if proposals is not None or task == "caption":
        count = len(offered)
    rows = range(len(offered), len(offered) + len(targets))
    return Question(f"{split}/{item['video'].rpartition('/')[2]}", task, text,
                    answers[0] if answers else None, None, (), np.concatenate([offered, targets]),
                    tuple(rows), str(about.get("question_type", "")), answers, count)


def _without_prompt(prompt: str, task: str) -> str:
    """The text without the image token and what Question.prompt puts around it."""
    before, after = PROMPTS[task].split("{}")
    text = prompt.replace("<image>", "").strip()
    if not text.startswith(before) or not text.endswith(after.strip()):
        raise ValueError(f"the prompt {prompt[:60]!r} is not that of {task}")
    return text[len(before):len(text) - len(after.strip())].strip()


def _boxes(numbers: Any) -> np.ndarray:
    boxes = np.asarray(numbers, np.float32).reshape(-1, 6)
    if not np.isfinite(boxes).all():
        raise ValueError(f"a box is not finite: {boxes.tolist()}")
    return boxes
