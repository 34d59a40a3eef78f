"""Questions about rooms, answered with each geometry and each control: the table behind every claim of the teacher.

    language.py prepare WORK --clips CLIPS                       # CPU: balanced questions; once
    language.py guesses WORK                                     # what answers without a picture score
    language.py streams WORK --clips CLIPS --features STORES     # optional: train does it if it is not done
    language.py train WORK --clips CLIPS --features STORES --seconds 420     # --fusions: every way to fuse, too
    language.py table WORK                                       # merge what there is; train does it at its end too
    language.py gate WORK --clips CLIPS                          # where the gate trusts geometry: classes, regions, PNG

--base N first trains N steps without a second stream, once a seed; every row (text_only aside) goes on from there with
its own, silent at first: rows then differ by what they see, not by when they left a plateau.
--student FOLDER puts a student's features in the generator's place, in the trained teacher; --onnx NAME=FILE likewise
its exported files; the row student_fp32_retrained is trained on them. It must be distilled from this very tap.

One small teacher is trained per row of FEATURES, position mode and seed, several side by side on each GPU, all for the
same number of steps: as many as a first measurement says will fit. The most important come first: three seeds of every
row, then of every fusion, then the other seeds. The same command on another GPU meanwhile shares the jobs. Every job
writes WORK/language/jobs/NAME.json, so a killed run keeps what it has and the same command goes on; `table` needs no
more than these. Needs the language model (vega3d teacher fetch).
"""
import argparse
import json
import multiprocessing
import os
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from language_slots import Slots
from language_streams import awaited, fill_streams, load_stream
from language_tables import DROPPED_IN, PREPARED, SPLITS, VARIANT, gate_table, guesses, note_run, say, table
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.questions import piles_of
from records.files import beside, write_json
from scenes.clip import ClipFolder
from scenes.questions import VSI_TYPES
from scenes.scoring import values
from teacher.answers import replies
from teacher.asking import Room, Writer, evened, read_room
from teacher.backbones import FixedNoise, Zeros
from teacher.fusion import FUSIONS
from teacher.language import LanguageShape, Sight
from teacher.lessons import CHOICE, Lessons, load_rooms, save_rooms
from teacher.lm import load_lm
from teacher.position import PositionMode
from teacher.tuning import TuneConfig, autocast, begin_with, build, fit, learned, set_statistics, validation_loss
from teacher.wan import Tap

FEATURES = ("semantic_only", "generator", "noise", "rgb", "vae_latents", "zeros", "text_only")
TASKS = (*(f"vsi:{t}" for t in VSI_TYPES), "ground")
BASE = "base"   # what --base trains
ENOUGH = 3      # seeds of every row before there are more of any
MARGIN = 0.85   # share of the time that is planned with
MEASURED = 6.0  # s that steps are timed for
PATIENCE = 300.0  # s for what another process makes
UNMEASURED, EXAM = 600, 10.0  # steps, and seconds of an exam, should that fail
_here: dict[str, Any] = {}  # what a worker keeps between its jobs


def main() -> None:
    args = _arguments()
    folder = args.work / "language"
    folder.mkdir(parents=True, exist_ok=True)
    if args.stage == "prepare":
        return prepare(args, folder)
    if args.stage == "guesses":
        return write_json(guesses(folder), folder / "guesses.json")
    if args.stage == "streams":
        return fill_streams(args, folder)
    if args.stage == "gate":
        return gate_table(args, folder)
    if args.stage == "train":
        train(args, folder)
    if not (folder / "guesses.json").is_file():
        write_json(guesses(folder), folder / "guesses.json")
    table(args, folder)


def prepare(args: argparse.Namespace, folder: Path) -> None:
    """rooms_SPLIT.safetensors: the balanced questions about each split's clips, and what the model sees with them."""
    source = ClipFolder(args.clips)
    splits = {split: source.ids(split)[: args.most] for split in PREPARED
              if not (folder / f"rooms_{split}.safetensors").is_file()}
    # forked, since no process here has a GPU context yet: sixty that each import everything first take longer than that
    with ProcessPoolExecutor(args.workers, mp_context=multiprocessing.get_context("fork")) as pool:
        begin = time.monotonic()
        read = {split: pool.map(_read, [(str(args.clips), i, tuple(args.tasks), args.draws if split == "train" else 1)
                                        for i in ids], chunksize=8)
                for split, ids in splits.items() if ids}
        for split, each in read.items():
            rooms = evened([*each], seed=0)
            save_rooms(rooms, folder / f"rooms_{split}.safetensors")
            say(f"{split}: {len(rooms)} clips, {sum(len(r.asked) for r in rooms)} questions, "
                f"{time.monotonic() - begin:.0f} s")


def _read(job: tuple[str, str, tuple[str, ...], int]) -> Room:
    torch.set_num_threads(1)
    root, clip_id, tasks, draws = job
    return read_room(ClipFolder(root).clip(clip_id), tasks, seed=0, draws=draws)


def train(args: argparse.Namespace, folder: Path) -> None:
    until = time.monotonic() + args.seconds
    if not args.wait and not (folder / "rooms_test.safetensors").is_file():
        prepare(args, folder)
    note_run(folder)
    if not args.wait:
        fill_streams(args, folder)
    jobs = [job for job in trainings(args) if not (folder / "jobs" / f"{'-'.join(map(str, job))}.json").is_file()]
    gpus = max(1, torch.cuda.device_count())
    side = min(args.side * gpus, len(jobs))
    if not jobs:
        return
    say(f"{len(jobs)} trainings, {side} side by side on {gpus} device(s), {until - time.monotonic():.0f} s left")
    slots = Slots(side, partial(_begin, args, folder, gpus))
    try:
        steps, exam = args.steps, EXAM
        if not steps:
            planned = min(len(jobs), args.share or len(jobs))
            steps, exam = _plan(slots, side, planned, until, args.measuring, len(_dropped_in(folder)))
            steps = _earlier(folder, args.positions) or steps
        say(f"{steps} steps each, {until - time.monotonic():.0f} s left")
        slots.run(_job, [(*job, steps, until - max(5.0, 1.5 * exam)) for job in jobs], until)
    finally:
        slots.close()


def trainings(args: argparse.Namespace) -> list[tuple[str, PositionMode, int]]:
    """Every (features, position, seed) to train, the most important first."""
    def those(rows: list[str], seeds: list[int]) -> list[tuple[str, PositionMode, int]]:
        return [(row, position, seed) for seed in seeds for position in args.positions for row in rows]

    rest = ("token_gate", "semantic_only")  # rows of their own
    fused = [f"generator{VARIANT}{name}" for name in FUSIONS if name not in rest] if args.fusions else []
    first, more = args.seeds[:ENOUGH], args.seeds[ENOUGH:]
    if args.base:  # what others wait for, and what waits for nobody
        alone = [row for row in args.features if row == "text_only"]
        others = [row for row in args.features if row != "text_only"]
        return those([BASE], args.seeds) + those(alone, args.seeds) + those(others, args.seeds)
    return those(args.features, first) + those(fused, first) + those(args.features, more)


def _plan(slots: Slots, side: int, jobs: int, until: float, most: float, more: int) -> tuple[int, float]:
    """(steps for each job, seconds of an exam), from how long both take with everyone at work; the last job may have
    so many exams more."""
    begin = time.monotonic()
    built, steps, exams = (slots.everywhere(f, begin + most) for f in (_measure_start, _measure_steps, _measure_exam))
    if not built or not steps or not exams:
        say(f"nothing could be measured, for the reasons above: {UNMEASURED} steps")
        return UNMEASURED, EXAM
    rounds, fixed = -(-jobs // side), max(built) + max(exams)
    say(f"a step takes {max(steps):.3f} s, a job's start {max(built):.1f} s, exam {max(exams):.1f} s, {rounds} rounds")
    left = (until - time.monotonic()) * MARGIN - more * max(exams)
    return max(20, int((left / rounds - fixed) / max(steps))), max(exams)


def _dropped_in(folder: Path) -> list[str]:
    """Students that take the generator's place in the teacher it trained."""
    end = "_test.safetensors"
    return sorted(p.name.removesuffix(end) for p in folder.glob(f"{DROPPED_IN}*{end}"))


def _earlier(folder: Path, positions: list[str]) -> int:
    """Steps that trainings of these positions were planned with before, so that the rest can be compared; or 0."""
    jobs = [json.loads(path.read_text()) for path in (folder / "jobs").glob("*.json")]
    return max((job["planned"] for job in jobs if job["position"] in positions), default=0)


def _begin(args: argparse.Namespace, folder: Path, gpus: int, index: int) -> None:
    torch.set_num_threads(1)
    device = torch.device("cuda", index % gpus) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    lm, tokenizer = load_lm(args.lm)
    writer = Writer(tokenizer, lm.get_input_embeddings().weight.shape[0])
    lessons = {}
    for split in SPLITS:
        rooms = load_rooms(awaited(folder / f"rooms_{split}.safetensors", PATIENCE * args.wait))
        semantic = load_stream(folder, "semantic", split, PATIENCE * args.wait)
        lessons[split] = Lessons(rooms, semantic, None, writer, device)
    for one in lessons.values():
        one.weigh({CHOICE: args.choice_share})
    _here.update(args=args, folder=folder, device=device, lessons=lessons)


def _with(features: str, split: str) -> Lessons:
    lessons: Lessons = _here["lessons"][split]
    count, frames = lessons.sight.semantic.shape[:2]
    blank = torch.zeros(1, frames, 3, 14, 14)
    if features in ("semantic_only", "text_only"):
        return lessons.with_stream(None)
    if features in ("zeros", "noise"):
        tower = Zeros() if features == "zeros" else FixedNoise()
        return lessons.with_stream(tower.features(blank).half().expand(count, -1, -1, -1, -1))
    name = features.partition(VARIANT)[0].removesuffix("_retrained")
    patience = PATIENCE * _here["args"].wait
    return lessons.with_stream(load_stream(_here["folder"], name, split, patience))


def _prepared(features: str, position: PositionMode, seed: int, steps: int) -> tuple[Any, TuneConfig, Lessons]:
    args = _here["args"]
    lessons = _with(features, "train")
    stream = lessons.sight.generative
    fusion = "semantic_only" if stream is None else features.partition(VARIANT)[2] or "token_gate"
    shape = LanguageShape(lessons.sight.semantic.shape[2], 1 if stream is None else stream.shape[2], fusion, position,
                          args.grid, args.objects, args.query, sight=features != "text_only", metric=args.metric)
    config = TuneConfig(lm=args.lm, layers=args.layers, tune=args.tune, steps=steps, clips=args.batch, lr=args.lr,
                        lr_new=args.lr_new, questions=args.questions, seed=seed, graphed=not args.eager,
                        compiled=args.compiled, validate_every=max(1, steps // 5))
    model, _ = build(config, shape, _here["device"])
    set_statistics(model, lessons)
    return model, config, lessons


def _measure_start() -> float:
    """Seconds before a training's first step."""
    begin = time.monotonic()
    features = "generator" if (_here["folder"] / "generator_train.safetensors").is_file() else "noise"
    _here["measured"] = model, config, lessons = _prepared(features, "depth_pose", 0, 10**9)
    _wait()
    seconds = time.monotonic() - begin
    fit(model, lessons, replace(config, steps=4), quiet=True)
    _wait()
    return seconds


def _measure_steps() -> float:
    """Seconds a step."""
    model, config, lessons = _here["measured"]
    begin = time.monotonic()
    rows = fit(model, lessons, replace(config, validate_every=2), validate=lambda _: {"at": time.monotonic() - begin},
               stop=begin + MEASURED, quiet=True)
    ready = next((row for row in rows if row["at"] > MEASURED / 3), rows[0])  # by then every graph has been made
    if ready is rows[-1]:
        return rows[-1]["at"] / rows[-1]["step"]
    return (rows[-1]["at"] - ready["at"]) / (rows[-1]["step"] - ready["step"])


def _measure_exam() -> float:
    """Seconds after the last step."""
    begin = time.monotonic()
    model, config, _ = _here.pop("measured")
    _exam(model, config, _with("noise" if model.shape.generative_dim == FixedNoise.dim else "generator", "test"))
    return time.monotonic() - begin


def _job(features: str, position: PositionMode, seed: int, steps: int, stop: float) -> str:
    begin, job = time.monotonic(), f"{features}-{position}-{seed}"
    if begin > stop - max(5.0, _here.get("took", 0.0)):  # a training that was cut short compares with nothing
        return f"{job}: no time left"
    folder: Path = _here["folder"]
    claim = folder / "claims" / job
    if not _claimed(claim):
        return f"{job}: another process has it"
    try:
        said = _trained(features, position, seed, steps, stop)
        _here["took"] = time.monotonic() - _here.pop("began", time.monotonic())  # without the wait for a base
        return said
    finally:
        claim.unlink()


def _claimed(claim: Path) -> bool:
    """Takes a job unless a living process has it: the same command may run beside this one, on another GPU."""
    claim.parent.mkdir(exist_ok=True)
    try:
        with claim.open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        with suppress(FileNotFoundError, ValueError, ProcessLookupError):
            os.kill(int(claim.read_text()), 0)
            return False
        claim.unlink(missing_ok=True)
        return _claimed(claim)
    return True


def _trained(features: str, position: PositionMode, seed: int, steps: int, stop: float) -> str:
    job, folder = f"{features}-{position}-{seed}", _here["folder"]
    base = folder / "bases" / f"{position}-{seed}.safetensors"
    before = _here["args"].base
    if (folder / "jobs" / f"{job}.json").is_file() or (features == BASE and base.is_file()):
        return f"{job}: done meanwhile"
    _here["began"] = begin = time.monotonic()
    if features == BASE:
        model, _, curve = _fitted("semantic_only", position, seed, before, stop, {}, _with("semantic_only", "test"))
        with beside(base) as scratch:
            save_file({name: value.contiguous().cpu() for name, value in learned(model).items()}, scratch)
        return f"{job}: {curve[-1]['step']} steps, loss {curve[-1]['loss']:.3f}, {time.monotonic() - begin:.0f} s"
    if features == "text_only":
        steps, before = steps + before, 0
    while before and not base.is_file():
        if time.monotonic() > stop:
            return f"{job}: {base} never came"
        time.sleep(0.5)
    _here["began"] = begin = time.monotonic()
    start, held_out = load_file(base) if before else {}, _with(features, "test")
    model, config, curve = _fitted(features, position, seed, steps, stop, start, held_out)
    trained = time.monotonic() - begin
    others = _dropped_in(folder) if features == "generator" else []
    for name in (*others, features):  # the trained row last: then the job is done
        lessons = held_out if name == features else _with(name, "test")
        scores = _exam(model, config, lessons)
        gate = _gate(model, lessons)
        about = {"features": name, "trained_on": features, "position": position, "seed": seed,
                 "steps": before + curve[-1]["step"], "planned": before + steps, "base_steps": before,
                 "train_s": trained, "gate": None if gate is None else float(gate.float().mean())}
        if gate is not None:
            with beside(folder / "gates" / f"{name}-{position}-{seed}.safetensors") as scratch:
                save_file({"gate": gate}, scratch)
        write_json({**about, "curve": curve, "scores": scores}, folder / "jobs" / f"{name}-{position}-{seed}.json")
    mean = {task: round(float(np.mean([*pile.values()])), 3) for (task, metric), pile in piles_of(scores).items()
            if metric in ("mra", "accuracy", "acc@0.25")}
    return f"{job}: {curve[-1]['step']} steps, loss {curve[-1]['loss']:.3f}, {trained:.0f} s, {mean}"


def _fitted(features: str, position: PositionMode, seed: int, steps: int, stop: float, start: dict[str, Tensor],
            held_out: Lessons) -> tuple[Any, TuneConfig, list[dict]]:
    """(model, config, curve) of one training, from `start` on if that is not empty; where its layers do not compile,
    they are left as they are from then on."""
    model, config, lessons = _prepared(features, position, seed, steps)
    if start:
        begin_with(model, {name: value.to(lessons.device) for name, value in start.items()})
    try:
        return model, config, fit(model, lessons, config, stop=stop, quiet=True,
                                  validate=lambda objective: validation_loss(objective, held_out, config))
    except Exception:
        if not config.compiled:
            raise
        say(f"{features}-{position}-{seed}: not compiled from now on, since:\n{traceback.format_exc()}")
    _here["args"].compiled = False
    return _fitted(features, position, seed, steps, stop, start, held_out)


def _exam(model: Any, config: TuneConfig, lessons: Lessons) -> list[list]:
    """[clip, index, task, kind, {metric: value}] of every held-out question."""
    out: list[list] = []
    args = _here["args"]
    for name in lessons.families:
        with autocast(config, lessons.device):
            answers = replies(model, lessons, name, clips=args.exam_batch, each=12)
        for reply in answers:
            room = lessons.rooms[reply.room]
            question = room.asked[reply.question]
            score = values(question, reply.output(question))
            out.append([room.id, reply.question, question.task, question.kind, score])
    return sorted(out, key=lambda row: (row[0], row[1]))


@torch.inference_mode()
def _gate(model: Any, lessons: Lessons) -> Tensor | None:
    """Semantic share of every token of every held-out clip, [N,T,14,14] float16; None for variants without a gate."""
    shares = []
    for rows in torch.arange(len(lessons.rooms), device=lessons.device).split(32):
        s = lessons.sight
        generative = None if s.generative is None else s.generative[rows]
        _, gate = model.fusion(*model.standardise(Sight(s.semantic[rows], generative, s.points[rows], s.boxes[rows],
                                                        s.inside[rows])))
        if gate is None:
            return None
        shares.append(gate.squeeze(1).unflatten(0, (len(rows), -1)).half().cpu())
    return torch.cat(shares)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("stage", choices=("prepare", "guesses", "streams", "train", "table", "gate"))
    p.add_argument("work", type=Path)
    p.add_argument("--clips", type=Path, help="folder of vega3d scenes render")
    p.add_argument("--features", dest="features_at", type=Path, help="folder of feature stores")
    p.add_argument("--rows", dest="features", nargs="+", default=list(FEATURES),
                   help="also student_fp32_retrained, with --student")
    p.add_argument("--fusions", action="store_true", help="also the generator in every way to fuse, of three seeds")
    p.add_argument("--base", type=int, default=0, help="steps without a second stream that each seed's rows go on "
                   "from; needs --steps, of what comes after. 0: every row from nothing")
    p.add_argument("--positions", nargs="+", default=["depth_pose", "pose_free"], choices=("depth_pose", "pose_free"))
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    p.add_argument("--tasks", nargs="+", default=list(TASKS))
    p.add_argument("--seconds", type=float, default=420)
    p.add_argument("--measuring", type=float, default=150, help="seconds that the first measurement may take")
    p.add_argument("--side", type=int, default=6, help="trainings side by side on each GPU")
    p.add_argument("--steps", type=int, default=0, help="0: as before, or as many as fit")
    p.add_argument("--share", type=int, default=0, help="jobs that steps are planned for here; the same command on "
                   "another GPU takes the others. 0: all")
    p.add_argument("--generator", default="wan-nano")
    tap = Tap()
    p.add_argument("--block", type=int, default=tap.block)
    p.add_argument("--k", type=int, default=tap.k)
    p.add_argument("--noise-seeds", type=int, default=tap.seeds)
    p.add_argument("--student", type=Path, default=None, help="folder of student.safetensors")
    p.add_argument("--onnx", nargs="*", default=[], help="student_NAME=FILE: exported files of that student")
    p.add_argument("--objects", default="fused", choices=("fused", "semantic", "heard"))
    p.add_argument("--query", default="words", choices=("words", "ground"))
    config = TuneConfig()
    p.add_argument("--metric", type=float, default=0.0, help="weight of the distances between visual tokens")
    p.add_argument("--lm", default=config.lm)
    p.add_argument("--layers", type=int, default=12, help="of the language model's 30; more steps fit with fewer")
    p.add_argument("--tune", default=config.tune, choices=("frozen", "lora", "full"))
    p.add_argument("--lr", type=float, default=config.lr)
    p.add_argument("--lr-new", type=float, default=config.lr_new)
    p.add_argument("--batch", type=int, default=config.clips, help="clips")
    p.add_argument("--questions", type=int, default=6, help="about each clip")
    p.add_argument("--choice-share", type=float, default=0.1,
                   help="batches of multiple choice, whose prompts are long; 0: it is neither trained nor asked")
    p.add_argument("--grid", type=int, default=7)
    p.add_argument("--eager", action="store_true", help="no CUDA graphs")
    p.add_argument("--compiled", action="store_true", help="the language model's layers, within the graphs")
    p.add_argument("--exam-batch", type=int, default=64, help="clips")
    p.add_argument("--wait", action="store_true", help="train: other processes make rooms and streams")
    p.add_argument("--streams", nargs="+", help="streams: only these; all without it")
    p.add_argument("--draws", type=int, default=3, help="of questions, for training clips (teacher.asking.OFTEN)")
    p.add_argument("--most", type=int, default=None, help="clips of each split")
    p.add_argument("--workers", type=int, default=max(1, len(os.sched_getaffinity(0)) - 2))
    args = p.parse_args()
    if args.base and (not args.steps or args.fusions):
        p.error("--base needs --steps, and cannot have --fusions: most of them cannot go on from what it trains")
    return args


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # of the workers
    main()
