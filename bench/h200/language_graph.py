"""Is a training step of the language teacher the same as one CUDA graph, and what do graphs and the compiler save?

    language_graph.py OUT.json [--layers 8] [--steps 60]

Made-up rooms and features in the real shapes: each way's losses beside the plain one's, and milliseconds a step of
each, in turn, at several batches; the plain one is the first of --ways. Needs a GPU and the language model.
"""
import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from records.environment import environment
from records.results import Row, measured, save
from scenes.questions import NO_BOXES, Question
from teacher.asking import Room, Writer
from teacher.language import LanguageShape
from teacher.lessons import Lessons
from teacher.tuning import TuneConfig, build, fit, set_statistics

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FRAMES, BOXES = 5, 12
WARM = 20  # steps
WAYS = {"eager": (False, False), "graphed": (True, False), "compiled": (True, True)}  # graphed, compiled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("out", type=Path)
    parser.add_argument("--lm", default="smollm2-135m")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS])
    args = parser.parse_args()
    base = TuneConfig(lm=args.lm, layers=args.layers, steps=args.steps, questions=6, lr=5e-4, warm=0.2,
                      validate_every=1)
    rows: list[Row] = []
    for clips in args.batches:
        curves: dict[str, list[float]] = {}
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for way in [*args.ways, *args.ways]:
            graphed, compiled = WAYS[way]
            config = replace(base, clips=clips, graphed=graphed, compiled=compiled)
            model, writer = build(config, LanguageShape(112, 256, position="pose_free"), DEVICE)
            lessons = made_up(writer, max(args.batches) + 8)
            set_statistics(model, lessons)
            curve = fit(model, lessons, config, validate=lambda _: {"at": now()}, quiet=True)
            curves.setdefault(way, [row["loss"] for row in curve])
            # both families have had their first steps, and with them their graphs
            times[way].append(1000 * (curve[-1]["at"] - curve[WARM]["at"]) / (args.steps - 1 - WARM))
        plain = args.ways[0]
        for way in args.ways:
            off = [abs(a - b) for a, b in zip(curves[plain], curves[way], strict=True)]
            ms = statistics.median(times[way])
            rows.append({"way": way, "clips": clips, "questions": 6, "layers": args.layers, "step_ms": ms,
                         "speedup": statistics.median(times[plain]) / ms, "loss_first": curves[way][0],
                         "loss_last": curves[way][-1], "loss_off_first": off[0], "loss_off_mean": sum(off) / len(off)})
            print(rows[-1], flush=True)
        save(replace(measured("language_graph", rows, environment()), command=" ".join(
            ["bench/h200/language_graph.py", *sys.argv[1:]])), args.out)


def made_up(writer: Writer, clips: int) -> Lessons:
    """Rooms of a dozen boxes with a number and a box to ask for, and random features."""
    draw, rooms = np.random.default_rng(0), []
    for i in range(clips):
        name = f"train/{i:05d}_0"
        boxes = np.concatenate([draw.uniform(-2, 2, (BOXES, 3)), draw.uniform(0.3, 2, (BOXES, 3)),
                                np.zeros((BOXES, 1))], 1).astype(np.float32)
        inside = draw.random((BOXES, FRAMES * 196)).astype(np.float32) > 0.97
        asked = [Question(name, "vsi:object_counting", f"How many chair(s) are in this room? {j}",
                          str(n := int(draw.integers(1, 9))), float(n), (), NO_BOXES, ()) for j in range(6)]
        asked += [Question(name, "ground", f"the chair number {j} beside the table", None, None, (), boxes,
                           (int(draw.integers(BOXES)),)) for j in range(6)]
        rooms.append(Room(name, draw.uniform(-3, 3, (FRAMES, 14, 14, 3)).astype(np.float32), boxes,
                          (inside / np.maximum(inside.sum(1, keepdims=True), 1)).astype(np.float16), asked,
                          [[]] * 6 + [list(range(BOXES))] * 6))
    semantic, generative = (torch.randn(clips, FRAMES, dim, 14, 14).half() for dim in (112, 256))
    return Lessons(rooms, semantic, generative, writer, DEVICE)


def now() -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


if __name__ == "__main__":
    main()
