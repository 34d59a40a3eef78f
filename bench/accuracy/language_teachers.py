"""Folders of `vega3d teacher train`, for a run's voices to speak through: opened, or refused in one
line."""
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from distill.run import DistillRun
from records.files import sha256
from teacher.language.dataset import load_rooms
from teacher.language.encode import RoomQuestions
from teacher.language.finetune import CHECKPOINT
from teacher.language.train import WEIGHTS
from teacher.towers.base import Tower
from teacher.towers.siglip import load_siglip
from teacher.towers.tap import Tap

# of features that are named otherwise
ROW = {"generator": "teacher", "none": "semantic_only", "vae_latents": "vae"}
SAME = ("semantic", "tasks", "position", "grid", "objects", "query")  # in courses that are compared
_STORE = ("format", "grid", "dtype", "source")  # in a store's manifest, what is no tower's
# in the tuning, what need not be equal
_FREE = ("seed", "save_every", "validate_every", "precision", "recompute")
_TRAIN = "for a teacher of this run's rooms: vega3d teacher train"


@dataclass(frozen=True)
class LanguageFolder:
    """A trained language teacher. course: teacher.course.LanguageTeacherConfig as JSON; towers: the specs of
    its features;
    clips: the keys of what these were made from; rooms: those it was trained on."""
    folder: Path
    course: dict[str, Any]
    towers: list[dict]
    clips: list[str]
    rooms: list[RoomQuestions]
    sha256: str

    @property
    def row(self) -> str:
        """The row of the accuracy table that its own features are."""
        return ROW.get(self.course["features"], self.course["features"])

    @property
    def seed(self) -> int:
        return self.course["tuning"].get("seed", 0)


def open_teachers(folders: Sequence[Path], run: DistillRun) -> list[LanguageFolder]:
    """Raises ValueError for a folder that is none, of other features than the run's, trained unlike
    the first one, or given twice; and if none was trained on the generator, in whose place the
    students are put."""
    found: list[LanguageFolder] = []
    for folder in folders:
        one = _open(folder)
        _check_towers(one, run)
        for other in found[:1]:
            _check_alike(one, other)
        if twin := [other for other in found if (other.row, other.seed) == (one.row, one.seed)]:
            raise ValueError(
                f"--teacher {folder}: features {one.course['features']}, seed {one.seed}, as "
                f"{twin[0].folder}, and would be counted twice")
        found.append(one)
    if not any(one.row == "teacher" for one in found):
        raise ValueError(
            "--teacher: none of them was trained with --features generator, in whose place the "
            "students are put; give that one too")
    return found


def check_unseen(teachers: Sequence[LanguageFolder], rooms: Sequence[RoomQuestions]) -> None:
    """Raises ValueError if a teacher was trained on one of these rooms: the same clip, or another
    one that shows the same thing in the same place."""
    asked = {mark: room.id for room in rooms for mark in _marks(room)}
    for one in teachers:
        for room in one.rooms:
            if shared := _marks(room) & asked.keys():
                raise ValueError(
                    f"--teacher {one.folder}: was trained on {room.id}, which is the run's "
                    f"held-out room {asked[shared.pop()]}; train one on other rooms: vega3d "
                    "teacher train")


def semantic_tower(course: dict[str, Any], run: DistillRun) -> Any:
    """What the course read frames with."""
    name = course["semantic"]
    return run.semantic if name == "efficientnet-lite0" else load_siglip(name).to(run.device)


def second_tower(course: dict[str, Any], run: DistillRun) -> Tower | None:
    """The course's second stream, of the run's generator where it is one; None: semantic features
    alone."""
    features = course["features"]
    if features in ("generator", "none"):
        return run.tower if features == "generator" else None
    return run.control(ROW.get(features, features))


def _open(folder: Path) -> LanguageFolder:
    weights, card = folder / WEIGHTS, folder / "config.json"
    if not card.is_file() or not weights.is_file():
        lacks = "config.json" if weights.is_file() else WEIGHTS
        why = "unfinished" if (folder /
                               CHECKPOINT).is_file() else f"no language teacher here (no {lacks})"
        raise ValueError(f"--teacher {folder}: {why}; make one with: vega3d teacher train")
    try:
        about = json.loads(card.read_text())
        course, shape = about["config"], about["shape"]
        if missing := {*SAME, "features", "fusion", "tap", "tuning"} - course.keys():
            raise ValueError(f"config.json lacks {', '.join(sorted(missing))}")
        Tap(**course["tap"])
        with safe_open(weights, "pt") as file:
            header = file.metadata() or {}
        if json.loads(header["shape"]) != shape or json.loads(header["tuning"]) != course["tuning"]:
            raise ValueError(f"{WEIGHTS} is of another training than config.json")
        manifests = [
            dict(json.loads(p.read_text())) for p in sorted(folder.glob("features/*/manifest.json"))
        ]
        rooms = [
            room for path in sorted(folder.glob("rooms_train-*.safetensors"))
            for room in load_rooms(path)
        ]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        why = f"config.json or {WEIGHTS} lacks {error}" if isinstance(error,
                                                                      KeyError) else str(error)
        raise ValueError(f"--teacher {folder}: no whole language teacher ({why}); make one with: "
                         "vega3d teacher train") from error
    if not manifests or not rooms:
        lacks = "features/*/manifest.json" if rooms else "rooms_train-*.safetensors"
        raise ValueError(
            f"--teacher {folder}: has no {lacks}, so nobody knows what it was trained on; copy the "
            "whole folder")
    towers = [{k: v for k, v in one.items() if k not in _STORE} for one in manifests]
    clips = sorted({str(one.get("source")) for one in manifests})
    return LanguageFolder(folder, course, towers, clips, rooms, sha256(weights))


def _check_towers(one: LanguageFolder, run: DistillRun) -> None:
    """The features are those the run would make: of the same weights, at the same tap."""
    if one.row == "teacher":
        theirs, ours = (tap.spec(torch.float32)
                        for tap in (Tap(**one.course["tap"]), run.config.teacher.tap))
        if theirs != ours:
            raise ValueError(
                f"--teacher {one.folder}: was trained at another tap ({_differing(theirs, ours)}); "
                f"{_TRAIN}")
    for tower in filter(None, (semantic_tower(one.course, run), second_tower(one.course, run))):
        ours = json.loads(json.dumps({k: v for k, v in tower.spec.items() if k not in _STORE}))
        if ours not in one.towers:
            theirs = next((spec for spec in one.towers if spec["tower"] == ours["tower"]), {})
            what = f"another {ours['tower']} ({_differing(theirs, ours)})" if theirs else f"no {ours['tower']}"
            raise ValueError(f"--teacher {one.folder}: was trained on features of {what}; {_TRAIN}")


def _check_alike(one: LanguageFolder, first: LanguageFolder) -> None:
    def facts(of: LanguageFolder) -> dict[str, Any]:
        tuning = {k: v for k, v in of.course["tuning"].items() if k not in _FREE}
        fusion = {} if "none" in (one.course["features"],
                                  first.course["features"]) else {"fusion": of.course["fusion"]}
        rooms = {"clips": of.clips, "training rooms": sorted(room.id for room in of.rooms)}
        return {**{k: of.course[k] for k in SAME}, **tuning, **fusion, **rooms}

    mine, theirs = facts(one), facts(first)
    if mine != theirs:
        raise ValueError(
            f"--teacher {one.folder}: was trained unlike {first.folder} "
            f"({_differing(mine, theirs)}); only features and seed may differ")


def _differing(one: dict, two: dict) -> str:
    """Such as "block 6, not 5": long values by their name alone."""
    keys = [key for key in {**one, **two} if one.get(key) != two.get(key)]
    short = [
        f"{k} {one.get(k)}, not {two.get(k)}"
        if len(f"{one.get(k)}{two.get(k)}") < 60 else f"other {k}" for k in keys
    ]
    return "; ".join(short)


def _marks(room: RoomQuestions) -> set[bytes]:
    """What tells a room from all others: where its surfaces are, and each of its things (to the
    bit: places are drawn from continuous distributions)."""
    return {room.points.tobytes(), *(box.tobytes() for box in room.boxes)}
