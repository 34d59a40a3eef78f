"""The tables that language.py's trainings add up to: scores, differences with intervals, recovery, the gate."""
import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from bench.questions import bounds, differences, piles_of, recovery
from records.environment import environment
from records.files import write_json
from records.results import Row, measured, save
from scenes.baselines import Majority, TextOnly
from scenes.clip import ClipFolder, Split
from scenes.questions import Question
from scenes.scoring import values
from teacher.gates import draw_gates, gate_rows
from teacher.lessons import load_rooms

SPLITS: tuple[Split, ...] = ("train", "test")
PREPARED: tuple[Split, ...] = (*SPLITS, "val")  # val: what settings were chosen on (pilot.sh)
VARIANT = "+"           # generator+add: another fusion
DROPPED_IN = "student"  # what may stand in for the generator
MATCHED = 0.02          # by how much two trainings' steps may differ where they are compared
GUESSED_FROM = 1000     # training questions of a task, at most


def table(args: argparse.Namespace, folder: Path) -> None:
    """WORK/rooms_questions.json, and every question's scores in rooms_questions_each.json; fusion_ablation.json."""
    jobs = [json.loads(p.read_text()) for p in sorted((folder / "jobs").glob("*.json"))]
    variants = [j for j in jobs if VARIANT in j["features"]]
    _write(args, "rooms_questions", [j for j in jobs if j not in variants], json.loads(
        (folder / "guesses.json").read_text()))
    base = {(j["position"], j["seed"]) for j in variants}
    _write(args, "fusion_ablation", variants and [j for j in jobs if j in variants or (
        j["features"] in ("generator", "semantic_only") and (j["position"], j["seed"]) in base)], [])


def _write(args: argparse.Namespace, name: str, jobs: list[dict], rows: list[Row]) -> None:
    if not jobs:
        return
    rows = list(rows)
    for job in jobs:
        piles = piles_of(job["scores"])
        about = {k: v for k, v in job.items() if k not in ("curve", "scores")}
        about |= {"fusion": job["trained_on"].partition(VARIANT)[2] or "token_gate"}
        rows += [{"kind": "score", **about, "task": task, "metric": metric, "value": float(np.mean([*pile.values()])),
                  "questions": len(pile)} for (task, metric), pile in piles.items()]
    rows += _differences(jobs)
    _save(name, rows, args.work)
    write_json({f"{j['features']}-{j['position']}-{j['seed']}": j["scores"] for j in jobs},
               args.work / f"{name}_each.json")
    say(f"{len(jobs)} trainings, {len(rows)} rows: {args.work / name}.json")


def _differences(jobs: list[dict]) -> list[Row]:
    """Generator minus each other row, and each row minus semantic only: the mean over questions and the seeds that both
    have at the same number of steps, with the 95 % interval of a bootstrap over rooms and seeds; and the recovery of
    what stands in for the generator."""
    rows: list[Row] = []
    by = {(j["features"], j["position"], j["seed"]): piles_of(j["scores"]) for j in jobs}
    steps = {(j["features"], j["position"], j["seed"]): j["steps"] for j in jobs}
    names = sorted({j["features"] for j in jobs})
    for position in sorted({j["position"] for j in jobs}):
        for task, metric in (("vsi_numeric", "mra"), ("ground", "acc@0.25"), ("ground", "acc@0.5")):
            found = {}
            for a, b in _pairs(names):
                both = [(s, by[a, p, s].get((task, metric)), by[b, p, s].get((task, metric)))
                        for f, p, s in by if (f, p) == (a, position) and (b, p, s) in by
                        and abs(steps[a, p, s] / steps[b, p, s] - 1) <= MATCHED]
                pairs = {s: (x, y) for s, x, y in both if x and y and x.keys() == y.keys()}
                if not pairs:
                    continue
                drawn, delta = differences(*zip(*pairs.values(), strict=True))                    # [seeds,questions]
                found[a, b] = pairs.keys(), delta
                low, high = bounds(drawn, delta)
                about = {"position": position, "task": task, "metric": metric, "seeds": len(pairs),
                         "questions": delta.shape[1]}
                each = delta.mean(1)
                rows.append({"kind": "difference", "features": a, "minus": b, **about, "value": float(delta.mean()),
                             "low": low, "high": high, "lowest_seed": float(each.min()),
                             "highest_seed": float(each.max())})
                seeds, gain = found.get(("generator", "semantic_only"), ((), None))
                if a.startswith(DROPPED_IN) and gain is not None and (seeds, gain.shape) == (pairs.keys(), delta.shape):
                    rows.append({"kind": "recovery", "features": a, **about, **recovery(drawn, delta, gain)})
    return rows


def _pairs(names: list[str]) -> list[tuple[str, str]]:
    return [("generator", n) for n in names if n != "generator"] + [
        (n, "semantic_only") for n in names if n not in ("generator", "semantic_only")]


def guesses(folder: Path) -> list[Row]:
    """What guessing scores: by chance, the commonest answer, and the nearest training questions by their words."""
    known, asked = ([q for r in load_rooms(folder / f"rooms_{s}.safetensors") for q in r.asked] for s in SPLITS)
    by_task: dict[str, list[Question]] = {}
    for question in known:
        by_task.setdefault(question.task, []).append(question)
    some = [q for pile in by_task.values() for q in pile[::-(-len(pile) // GUESSED_FROM)]]
    asked = [q for q in asked if q.task in by_task]
    majority, text = Majority(some), TextOnly(some)
    number = {q.task: q for q in asked if q.number is not None}
    constant = {task: majority.output(q) for task, q in number.items()}  # the same for every question of a task
    scores: dict[str, list[list]] = {"chance": [], "majority": [], "nearest_text": []}
    for i, question in enumerate(asked):
        about = [question.clip_id, i, question.task, question.kind]
        choices = len(question.options) or (len(question.offered) if question.task == "ground" else 0)
        if choices:
            scores["chance"].append([*about, {"acc@0.25" if question.task == "ground" else "accuracy": 1 / choices}])
        scores["majority"].append([*about, values(question, constant.get(question.task) or majority.output(question))])
        scores["nearest_text"].append([*about, values(question, text.output(question))])
    return [{"kind": "score", "features": name, "position": "-", "seed": 0, "task": task, "metric": metric,
             "value": float(np.mean([*pile.values()])), "questions": len(pile)}
            for name, rows in scores.items() for (task, metric), pile in piles_of(rows).items()]


def gate_table(args: argparse.Namespace, folder: Path) -> None:
    """WORK/gate_by_class.json: mean semantic share by class, distance and part of the frame; WORK/gate.png."""
    rooms, source = load_rooms(folder / "rooms_test.safetensors"), ClipFolder(args.clips)
    clips = [source.clip(room.id) for room in rooms[: args.most]]
    rows: list[Row] = []
    for path in sorted((folder / "gates").glob("*.safetensors")):
        gates = load_file(path)["gate"].numpy()[: len(clips)]
        features, position, seed = path.stem.rsplit("-", 2)
        rows += [{"features": features, "position": position, "seed": int(seed), **row}
                 for row in gate_rows(clips, gates)]
        if features == "generator":
            draw_gates(clips[:: max(1, len(clips) // 6)][:6], gates[:: max(1, len(clips) // 6)][:6],
                       args.work / f"gate_{position}_{seed}.png")
    _save("gate_by_class", rows, args.work)


def note_run(folder: Path) -> None:
    """Adds this command to WORK/language/runs.json: the table may be made later, and elsewhere."""
    command = " ".join(["bench/h200/language.py", *sys.argv[1:]])
    write_json([*_runs(folder), {"command": command, "env": environment()}], folder / "runs.json")


def _runs(folder: Path) -> list[dict]:
    file = folder / "runs.json"
    return json.loads(file.read_text()) if file.is_file() else []


def _save(name: str, rows: list[Row], work: Path) -> None:
    """WORK/NAME.json, by the commands that trained (each once) and on their machine."""
    runs = _runs(work / "language") or [{"command": " ".join(sys.argv), "env": environment()}]
    commands = dict.fromkeys(str(run["command"]) for run in runs)
    save(replace(measured(name, rows, runs[-1]["env"]), command="; ".join(commands)), work / f"{name}.json")


def say(what: str) -> None:
    """One line with the time before it."""
    print(f"[{time.strftime('%H:%M:%S')}] {what}", flush=True)
