"""Folders of `vega3d teacher train`: opened and checked against a run before minutes of scoring."""
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from distill.run import DistillRun
from records.files import parse_json, read_json, sha256
from teacher.language.dataset import load_rooms
from teacher.language.encode import RoomQuestions
from teacher.language.finetune import CHECKPOINT
from teacher.language.weights import WEIGHTS
from teacher.towers.base import Tower
from teacher.towers.image_encoders import load_siglip
from teacher.towers.tap import stored_tap

# accuracy row of --features, where it is named otherwise
ROW = {"generator": "teacher", "none": "semantic_only", "vae_latents": "vae"}
SCORED = ("generator", "none", "zeros", "noise", "rgb", "vae_latents")  # features of a row
# must agree between teachers
SAME = ("semantic", "tasks", "position", "grid", "query", "pointers", "numbers")
_STORE = ("format", "grid", "dtype", "source")  # in a store's manifest: not of the tower
# in the tuning: may differ between teachers
_FREE = ("seed", "save_every", "validate_every", "precision", "recompute")
_TRAIN = "for a teacher of this run's rooms: vega3d teacher train"


@dataclass(frozen=True)
class LanguageFolder:
    """A trained language teacher."""
    folder: Path
    config: dict[str, Any]  # of its training, as JSON
    towers: list[dict]      # specs of its features
    clips: list[str]        # keys of the clip sources
    rooms: list[RoomQuestions]       # it was trained on
    sha256: str

    @property
    def row(self) -> str:
        """The accuracy row of its own features."""
        return ROW.get(self.config["features"], self.config["features"])

    @property
    def seed(self) -> int:
        return self.config["tuning"].get("seed", 0)


def open_teachers(folders: Sequence[Path], run: DistillRun) -> list[LanguageFolder]:
    """Raises ValueError for a folder without a complete teacher, of other features than the run's,
    trained unlike the first one, or given twice; and if none was trained on the generator."""
    opened: list[LanguageFolder] = []
    for folder in folders:
        teacher = _open(folder)
        if teacher.config["features"] not in SCORED:
            raise ValueError(f"--teacher {folder}: was trained with --features "
                             f"{teacher.config['features']}; expected one of {', '.join(SCORED)}")
        _check_towers(teacher, run)
        if opened:
            _check_alike(teacher, opened[0])
        for other in opened:
            if (other.row, other.seed) == (teacher.row, teacher.seed):
                raise ValueError(
                    f"--teacher {folder}: features {teacher.config['features']}, seed "
                    f"{teacher.seed}, as {other.folder}; it would be counted twice")
        opened.append(teacher)
    if not any(teacher.row == "teacher" for teacher in opened):
        raise ValueError("--teacher: none of them was trained with --features generator, which the "
                         "students replace; give that one too")
    return opened


def check_unseen(teachers: Sequence[LanguageFolder], rooms: Sequence[RoomQuestions]) -> None:
    """Raises ValueError if a teacher was trained on one of these rooms: the same clip, or another
    one that shows the same object in the same place."""
    held_out = {mark: room.id for room in rooms for mark in _marks(room)}
    for teacher in teachers:
        for room in teacher.rooms:
            if shared := _marks(room) & held_out.keys():
                raise ValueError(
                    f"--teacher {teacher.folder}: was trained on {room.id}, which is the run's "
                    f"held-out room {held_out[shared.pop()]}; train one on other rooms: vega3d "
                    "teacher train")


def semantic_tower(config: dict[str, Any], run: DistillRun) -> Any:
    """The training's semantic encoder."""
    name = config["semantic"]
    return run.semantic if name == "efficientnet-lite0" else load_siglip(name).to(run.device)


def second_tower(config: dict[str, Any], run: DistillRun) -> Tower | None:
    """The training's second stream: the run's generator, a control, or None (semantic only)."""
    features = config["features"]
    if features in ("generator", "none"):
        return run.tower if features == "generator" else None
    return run.control(ROW.get(features, features))


def _open(folder: Path) -> LanguageFolder:
    weights, card = folder / WEIGHTS, folder / "config.json"
    if not card.is_file() or not weights.is_file():
        missing = "config.json" if weights.is_file() else WEIGHTS
        unfinished = (folder / CHECKPOINT).is_file()
        why = "unfinished" if unfinished else f"no language teacher here (no {missing})"
        raise ValueError(f"--teacher {folder}: {why}; make one with: vega3d teacher train")
    try:
        config = _read_config(card, weights)
        data = Path(config.get("data") or folder)
        manifests = [dict(read_json(path, "copy the complete folder"))
                     for path in sorted(data.glob("features/*/manifest.json"))]
        rooms = [room for path in sorted(data.glob("rooms_train-*.safetensors"))
                 for room in load_rooms(path)]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = f"config.json or {WEIGHTS} lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"--teacher {folder}: not a complete language teacher ({reason}); make "
                         "one with: vega3d teacher train") from error
    if not manifests or not rooms:
        missing = "features/*/manifest.json" if rooms else "rooms_train-*.safetensors"
        raise ValueError(f"--teacher {folder}: has no {missing}, so its training data is unknown; "
                         "copy the complete folder")
    towers = [_tower_facts(manifest) for manifest in manifests]
    clips = sorted({str(manifest.get("source")) for manifest in manifests})
    return LanguageFolder(folder, config, towers, clips, rooms, sha256(weights))


def _read_config(card: Path, weights: Path) -> dict[str, Any]:
    """The training's configuration, checked against the header of its weights."""
    content = read_json(card, "copy the complete folder")
    config, shape = content["config"], content["shape"]
    if missing := {*SAME, "features", "fusion", "tap", "tuning"} - config.keys():
        raise ValueError(f"config.json lacks {', '.join(sorted(missing))}")
    stored_tap(config["tap"])
    with safe_open(weights, "pt") as file:
        header = file.metadata() or {}
    if parse_json(header["shape"]) != shape or parse_json(header["tuning"]) != config["tuning"]:
        raise ValueError(f"{WEIGHTS} is of another training than config.json")
    return config


def _check_towers(teacher: LanguageFolder, run: DistillRun) -> None:
    """The features must be those the run would extract: same weights, same tap."""
    if teacher.row == "teacher":
        theirs, ours = (tap.spec(torch.float32)
                        for tap in (stored_tap(teacher.config["tap"]), run.config.teacher.tap))
        if theirs != ours:
            raise ValueError(f"--teacher {teacher.folder}: was trained at another tap "
                             f"({_differing(theirs, ours)}); {_TRAIN}")
    towers = (semantic_tower(teacher.config, run), second_tower(teacher.config, run))
    for tower in filter(None, towers):
        ours = json.loads(json.dumps(_tower_facts(tower.spec)))
        name = ours["tower"]
        if ours not in teacher.towers:
            theirs = next((spec for spec in teacher.towers if spec["tower"] == name), {})
            what = f"another {name} ({_differing(theirs, ours)})" if theirs else f"no {name}"
            raise ValueError(
                f"--teacher {teacher.folder}: was trained on features of {what}; {_TRAIN}")


def _check_alike(teacher: LanguageFolder, first: LanguageFolder) -> None:
    semantic_only = "none" in (teacher.config["features"], first.config["features"])

    def facts(of: LanguageFolder) -> dict[str, Any]:
        found = {key: of.config[key] for key in SAME}
        found |= {k: v for k, v in of.config["tuning"].items() if k not in _FREE}
        if not semantic_only:
            found["fusion"] = of.config["fusion"]
        return found | {"clips": of.clips, "training rooms": sorted(room.id for room in of.rooms)}

    ours, theirs = facts(teacher), facts(first)
    if ours != theirs:
        raise ValueError(f"--teacher {teacher.folder}: was trained unlike {first.folder} "
                         f"({_differing(ours, theirs)}); only features and seed may differ")


def _tower_facts(spec: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key not in _STORE}


def _differing(one: dict, two: dict) -> str:
    """Such as "block 6, not 5"; long values by their key alone."""
    parts = []
    for key in one | two:
        a, b = one.get(key), two.get(key)
        if a != b:
            parts.append(f"{key} {a}, not {b}" if len(f"{a}{b}") < 60 else f"other {key}")
    return "; ".join(parts)


def _marks(room: RoomQuestions) -> set[bytes]:
    """Surface points and each object's box, to the bit: places have continuous distributions."""
    return {room.points.tobytes(), *(box.tobytes() for box in room.boxes if box[3:6].any())}
