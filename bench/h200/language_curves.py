"""How long the language teacher may train: its loss on held-out rooms along the way, and what it scored at the end.

    language_curves.py OUT NAME=JOBS [NAME=JOBS ...]      JOBS: a folder of language.py's jobs, as home.sh brings it

Writes OUT/language_curves.json: a row a training, and a row for each point of its curve.
"""
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.questions import NUMBERS, piles_of
from records.environment import environment
from records.results import Row, measured, save

TASKS = {"number": "loss_vsi_number", "ground": "loss_ground"}


def main(out: Path, given: list[str]) -> None:
    rows: list[Row] = []
    for one in given:
        name, _, folder = one.partition("=")
        for path in sorted(Path(folder).glob("*.json")):
            job = json.loads(path.read_text())
            if job["features"] == job["trained_on"]:  # what was dropped in was not trained
                rows += training(name, job)
    save(replace(measured("language_curves", rows, environment()),
                 command=" ".join(["bench/h200/language_curves.py", *sys.argv[1:]])), out / "language_curves.json")


def training(name: str, job: dict) -> list[Row]:
    """The training's row, then its points."""
    about: Row = {"training": name, "features": job["features"], "seed": job["seed"], "steps": job["steps"],
                  "base_steps": job.get("base_steps", 0)}
    piles = piles_of(job["scores"])
    row: Row = {"kind": "training", **about}
    for what, loss in TASKS.items():
        points = [(point[loss], about["base_steps"] + point["step"]) for point in job["curve"]]
        row[f"{what}_lowest"], row[f"{what}_lowest_at"] = min(points)
        row[f"{what}_last"] = points[-1][0]
    for key, (task, metric) in {"numeric_mra": NUMBERS, "distance_mra": ("vsi:object_abs_distance", "mra"),
                                "ground_acc": ("ground", "acc@0.25")}.items():
        row[key] = float(np.mean([*piles[task, metric].values()]))
    return [row, *({"kind": "point", **about, **point, "step": about["base_steps"] + point["step"]}
                   for point in job["curve"])]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
