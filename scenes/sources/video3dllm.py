"""The same five benchmarks from Video-3D LLM's files, DATASET_SPLIT_llava_style.json of
zd11024/Video-3D-LLM_data.

VEGA-3D trains and tests on these; each entry has its prompt, answer and boxes in it, so only frames
are needed beside.
"""
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scenes.clip import Split
from scenes.questions.question import PROMPTS, Question
from scenes.sources.scannet_annotations import read_proposals

_TASKS = {
    "scanrefer": "ground", "multi3drefer": "multi_ground", "scan2cap": "caption", "scanqa": "qa",
    "sqa3d": "situated"
}
_NONE = np.zeros((0, 6), np.float32)


def load_processed(path: Path | str, split: Split,
              proposals: Path | str | None = None) -> list[Question]:
    """The questions of one file, about clips SPLIT/SCENE.

    proposals: a JSON of boxes that may be chosen, "scannet/SCENE" -> list of six numbers
    (scannet_train_gt_box.json, scannet_val_pred_box.json). Without it only the boxes that are meant
    are known. An entry whose box has no volume stays, and scores 0. Raises ValueError for a file or
    entry that is laid out otherwise, or a scene without proposals.
    """
    path = Path(path)
    items, proposed = _list(path), read_proposals(Path(proposals)) if proposals else None
    out = []
    for number, item in enumerate(items):
        try:
            out.append(_question(item, split, proposed))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"{path}: entry {number} cannot be read ({type(error).__name__}: {error}); "
                "expected the layout of Video-3D LLM's processed files") from error
    return out


def _question(item: Mapping[str, Any], split: Split,
              proposed: Mapping[str, Any] | None) -> Question:
    about = item["metadata"]
    task, answer = _TASKS[str(about["dataset"]).lower()], str(item["conversations"][1]["value"])
    text = _bare(str(item["conversations"][0]["value"]), task)
    meant, offered = _NONE, _NONE
    if task in ("ground", "multi_ground"):
        meant = _boxes(item["box"])
        offered = _NONE if proposed is None else _boxes(proposed[item["video"]])
    elif task == "caption":
        meant = _boxes(item["gt_box"])
        offered = meant if item["box_input"] is None and split == "train" else _boxes(
            item["box_input"] or [])
    answers = about.get("answers") or item.get("annotations") or [answer]
    words = () if task in ("ground", "multi_ground") else tuple(str(a) for a in answers)
    known = proposed is not None or task == "caption"
    return Question(f"{split}/{item['video'].rpartition('/')[2]}", task, text,
                    words[0] if words else None, None, (), np.concatenate([offered, meant]),
                    tuple(range(len(offered),
                                len(offered) + len(meant))), str(about.get("question_type",
                                                                           "")), words,
                    len(offered) if known else None)


def _bare(prompt: str, task: str) -> str:
    """The text without the image token and what Question.prompt puts around it."""
    before, after = PROMPTS[task].split("{}")
    bare = prompt.replace("<image>", "").strip()
    if not bare.startswith(before) or not bare.endswith(after.strip()):
        raise ValueError(f"the prompt {prompt[:60]!r} is not that of {task}")
    return bare[len(before):len(bare) - len(after.strip())].strip()


def _boxes(numbers: Any) -> np.ndarray:
    """[K,6] from one box or a list of them."""
    boxes = np.asarray(numbers, np.float32).reshape(-1, 6)
    if not np.isfinite(boxes).all():
        raise ValueError(f"a box is not finite: {boxes.tolist()}")
    return boxes


def _list(path: Path) -> list[Mapping[str, Any]]:
    try:
        items = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{path}: missing; download it from zd11024/Video-3D-LLM_data") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error}); download it again") from error
    if not isinstance(items, list):
        raise ValueError(f"{path}: got a {type(items).__name__}, expected a list of entries")
    return items
