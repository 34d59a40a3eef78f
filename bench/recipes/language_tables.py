"""Where geometry helps the language teacher: one table a command, from many trainings.

    python -m bench.recipes.language_tables sensitivity CLIPS --work DIR --out sensitivity.json

CLIPS is a folder of `vega3d scenes render`. With N GPUs start N of these processes: each takes what
no other has taken, trainings whose rows DIR holds are skipped, an interrupted one resumes, and the
one that finds all rows writes OUT. --lm tiny: three layers from nothing, for a CPU.
"""
import argparse
import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from bench.accuracy.question_differences import clip_sums, difference
from bench.accuracy.student_features import FileTower, load_file
from bench.artefacts import find
from bench.recipes.jobs import job_path, share_jobs
from bench.tables.language_tables import DROPPED_IN
from infer.model import SHIPPED as SHIPPED_INT8
from records.files import locked, read_rows, spec_digest
from records.options import RecipeParser
from records.results import Row
from scenes.clip import ClipFolder
from scenes.questions.question import POINTER_CHECKS
from student.config import SHIPPED
from student.vit import load_student
from teacher.data.feature_store import FeatureStore, fill
from teacher.fusion import FUSIONS
from teacher.language.config import LanguageTeacherConfig, recipe
from teacher.language.dataset import load_features
from teacher.language.encode import RoomQuestions
from teacher.language.train import (
    ANSWERS,
    Data,
    Stores,
    evaluate,
    question_dataset,
    read_data,
    train_language_teacher,
)
from teacher.language.weights import WEIGHTS, load_language_teacher
from teacher.towers.wan import load_wan
from vega3d import run_recipe

NUMERIC = ("camera_distance", "vsi:object_abs_distance", "vsi:object_size_estimation")
TASKS = (*NUMERIC, "depth_order", *POINTER_CHECKS)
# tasks and metrics whose differences have intervals over rooms
COMPARED = (*NUMERIC, "depth_order")
SCORED = ("mra", "accuracy")
DEFAULTS = recipe("embedded")
CURVE_ROWS = 10  # of a training's metrics.jsonl
SECOND = ("generator", "random_weights", "zeros", "noise", "rgb", "vae_latents")
STUDENTS = {"student_fp32": SHIPPED, "student_int8": SHIPPED_INT8}
# rows without a training of their own: features in the place of the generator's, which was trained
DROPPED = {name + DROPPED_IN: name for name in ("zeros", "noise", *STUDENTS)}
Options = dict[str, dict[str, Any]]  # of a row
Baselines = Callable[[str, set[str]], list[str]]  # (a row, all rows) -> rows that it is minus of


PLAIN: Options = {"true_xyz": {"features": "true_xyz"}, "semantic": {"features": "none"},
                  "generator": {"features": "generator"}}


def _with_variants(names: tuple[str, ...], variants: Options) -> Options:
    """These rows of PLAIN, and each with each variant's options."""
    crossed = {f"{name}, {variant}": {**PLAIN[name], **options}
               for name in names for variant, options in variants.items()}
    return {name: PLAIN[name] for name in names} | crossed


# table -> row -> what differs from the defaults
TABLES: dict[str, Options] = {
    "sensitivity": {
        "true_xyz": PLAIN["true_xyz"], "semantic": PLAIN["semantic"],
        "depth_pose": {"features": "none", "position": "depth_pose"},
        **{name: {"features": name} for name in ("zeros", "noise", "place", "text_only")}},
    "reader": _with_variants(("true_xyz", "semantic"), {
        "no pointers": {"pointers": False}, "numbers as text": {"numbers": "text"},
        "choices as letters": {"choices": "letters"}}),
    "masking": _with_variants(("generator", "semantic", "true_xyz"), {
        "no loss": {"depth_ray": 0.0}, "layer losses": {"depth_ray": 0.0, "layer_losses": 0.2},
        "masked": {"masking": 0.8, "fusion": "channel_gate"}}) | {
        f"{name}, channel gate": {**PLAIN[name], "fusion": "channel_gate"}
        for name in ("generator", "true_xyz")},
    "fusion": {name: PLAIN[name] for name in ("generator", "semantic")} | {
        name: {"fusion": name} for name in FUSIONS if name not in ("token_gate", "semantic_only")},
    "questions": {
        "semantic": PLAIN["semantic"], "semantic twice": {"features": "semantic"},
        **{name: {"features": name} for name in (*SECOND, "true_xyz", "place")},
        **{name: {"features": "generator"} for name in DROPPED}}}


def minus_others(first: str) -> Baselines:
    """These features minus every other row."""
    return lambda name, names: sorted(names - {name}) if name == first else []


def minus_semantic(name: str, names: set[str]) -> list[str]:
    """Of "generator, masked" "semantic, masked", else "semantic"."""
    if name.startswith("semantic"):
        return []
    of_variant = f"semantic, {name.partition(', ')[2]}"
    return [of_variant if of_variant in names else "semantic"]


def generator_and_dropped(name: str, names: set[str]) -> list[str]:
    """The generator minus every other row; what is dropped in also minus semantic."""
    return ["semantic"] if name in DROPPED else minus_others("generator")(name, names)


BASELINES: dict[str, Baselines] = {  # of the differences that a table's file has
    "sensitivity": minus_others("true_xyz"), "reader": minus_semantic, "masking": minus_semantic,
    "fusion": minus_semantic, "questions": generator_and_dropped}


def main() -> None:
    parser = RecipeParser("language_tables", __doc__)
    parser.add_argument("table", choices=tuple(TABLES))
    parser.add_argument("clips", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", help="some of the table's rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--steps", type=int, default=DEFAULTS.tuning.steps)
    parser.add_argument("--batch", type=int, default=DEFAULTS.tuning.clips, help="clips")
    parser.add_argument("--lm", default="smollm2-135m", help="or tiny")
    parser.add_argument("--layers", type=int, default=DEFAULTS.tuning.layers)
    parser.add_argument("--lr", type=float, default=DEFAULTS.tuning.lr)
    parser.add_argument("--warm", type=float, default=DEFAULTS.tuning.warm)
    parser.add_argument("--grid", type=int, default=DEFAULTS.grid)
    parser.add_argument("--draws", type=int, default=DEFAULTS.draws)
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--compiled", action="store_true", help="compiled layers in the graphs")
    parser.add_argument("--finished", action="store_true",
                        help="writes the table of the trainings that are done, trains nothing")
    args = parser.parse_args()
    table = TABLES[args.table]
    if other := [name for name in args.rows or () if name not in table]:
        parser.error(f"--rows: got {other[0]!r}, expected some of: {', '.join(table)}")
    rows = {name: table[name] for name in args.rows or table}
    jobs = {}
    # DROPPED last in each seed: they wait for the generator's training
    order = sorted(rows, key=lambda name: name in DROPPED)
    for seed, name in product(args.seeds, order):
        out = job_path(args.work, name, seed)  # tables share a row of one name
        jobs[out.with_name(f"{out.name}.json")] = args, out, name, rows[name], seed
    if args.finished:
        jobs = {path: job for path, job in jobs.items() if path.is_file()}
    if not jobs:
        parser.error(f"--finished: {args.work} has no finished training of this table")
    share_jobs(jobs, _train, args.out, partial(table_rows, table=args.table))


def _train(args: argparse.Namespace, out: Path, name: str, options: dict[str, Any],
           seed: int) -> list[Row]:
    """A row for each task and metric of one training."""
    gc.collect()  # the last training's graphs hold memory that nothing else gets until it is free
    torch.cuda.empty_cache()
    lm, clips, questions = args.lm, args.batch, DEFAULTS.tuning.questions
    if options.get("fusion") == "context_gated":  # as many questions, each with its own tokens
        clips, questions = clips * questions, 1
    tuning = replace(DEFAULTS.tuning, lm=lm, layers=args.layers, steps=args.steps, clips=clips,
                     questions=questions, lr=args.lr, warm=args.warm, seed=seed, save_every=500,
                     graphed=not args.eager, compiled=args.compiled,
                     validate_every=max(1, args.steps // CURVE_ROWS))
    config = replace(DEFAULTS, out=out, clips=args.clips, data=args.work, grid=args.grid,
                     draws=args.draws, tasks=TASKS, tuning=tuning, **options)
    if name in DROPPED:
        config = replace(config, out=job_path(args.work, "generator", seed))
    stores, rooms = read_data(config, Accelerator())
    if lm == "tiny":
        tuning = replace(tuning, lm=str(args.work / "lm"), layers=None)
        config = replace(config, tuning=tuning)
        with locked(args.work / "lm.lock"):
            if not Path(tuning.lm).is_dir():
                save_tiny_lm(Path(tuning.lm), [r for part in rooms.values() for r in part])
    if name in DROPPED:
        answers = out.with_name(f"{out.name}.{ANSWERS}")
        scores = _drop_in(config, DROPPED[name], (stores, rooms), answers)
    else:
        answers = out / ANSWERS
        scores = train_language_teacher(config, (stores, rooms))
    rows_of_answers = read_rows(answers)
    counts = Counter((row["task"], kind) for row in rows_of_answers for kind in {"", row["kind"]})
    common: Row = {
        "features": name, "seed": seed, "steps": tuning.steps, "lm": lm,
        "train_clips": len(rooms["train"]),
        "train_questions": sum(len(room.questions) for room in rooms["train"])}
    out_rows: list[Row] = []
    for task, metrics in scores.items():
        if task in TASKS:
            check = {"check": "pointers"} if task in POINTER_CHECKS else {}
            for metric, value in metrics.items():
                if metric == "n":
                    continue
                row = {**common, **check, "task": task, "metric": metric, "value": value,
                       "questions": counts[task, metric.partition("/")[2]]}
                if task in COMPARED and metric in SCORED:
                    row["clips"] = clip_sums(rows_of_answers, task, metric)
                out_rows.append(row)
    out_rows += [{**common, "task": task, "metric": metric, "value": value}
                 for task in ("fused", "gate") for metric, value in scores.get(task, {}).items()]
    return out_rows


def table_rows(rows: list[Row], table: str) -> list[Row]:
    """Those of a table's file: `with_differences`, and the gate's share by class of the generator
    in `questions` alone, which is what is shown (half a megabyte in other rows)."""
    rows = [row for row in rows if not row["metric"].startswith("class/")
            or (table, row["features"]) == ("questions", "generator")]
    return with_differences(rows, BASELINES[table])


def with_differences(rows: list[Row], baselines: Baselines) -> list[Row]:
    """The rows without their sums of clips, and a row of kind "difference" for each pair of
    features and task; task "numeric": the mean of NUMERIC."""
    sums = {(row["features"], row["seed"], row["task"]): row["clips"]
            for row in rows if "clips" in row}
    out = [{key: value for key, value in row.items() if key != "clips"} for row in rows]
    names = dict.fromkeys(name for name, _, _ in sums)
    for name in names:
        for other in baselines(name, {*names}):
            for label, tasks in {**{task: (task,) for task in COMPARED},
                                 "numeric": NUMERIC}.items():
                seeds = [seed for first, seed, task in sums if (first, task) == (name, tasks[0])
                         and all((side, seed, task) in sums
                                 for side in (name, other) for task in tasks)]
                if seeds:
                    both = ([[sums[side, seed, task] for task in tasks] for seed in seeds]
                            for side in (name, other))
                    out.append({"kind": "difference", "features": name, "minus": other,
                                "task": label, **difference(*both)})
    return out


def _drop_in(config: LanguageTeacherConfig, name: str, data: Data,
             answers: Path) -> dict[str, dict[str, float]]:
    """`evaluate` of the trained teacher with other features of the test rooms, not retrained."""
    with locked(config.out.with_name(f"{config.out.name}.lock")):  # of the job that trains it
        if not (config.out / WEIGHTS).is_file():
            train_language_teacher(config, data)
    stores, rooms = data[0], data[1]["test"]
    device = Accelerator().device
    model, encoder, tuning = load_language_teacher(config.out / WEIGHTS, device)
    dataset = question_dataset(rooms, stores, encoder, device)
    assert dataset.visual.generative is not None
    shape = dataset.visual.generative.shape                          # [N,T,D,14,14]
    if name in STUDENTS:
        dropped = _student_features(config, name, stores, rooms).to(device)
    elif name == "zeros":
        dropped = torch.zeros(shape, device=device).half()
    else:  # one draw a channel and cell, with the generator's mean and deviation
        draw = torch.randn(shape[2:], generator=torch.Generator().manual_seed(0)).to(device)
        mean, std = (model.get_buffer(f"generative_{part}") for part in ("mean", "std"))
        dropped = (mean + std * draw).half().expand(shape)
    dataset.visual.generative = dropped
    return evaluate(model, dataset, tuning, answers)


def _student_features(config: LanguageTeacherConfig, name: str, stores: Stores,
                      rooms: list[RoomQuestions]) -> Tensor:
    """The shipped student's or its file's, in the generator's units, [N,T,D,14,14] half."""
    assert config.clips is not None and config.data is not None
    device = Accelerator().device
    teacher = spec_digest(load_wan(config.generator, config.tap).spec)
    student = load_student(SHIPPED, teacher).to(device)
    file = find(STUDENTS[name])[0][0]
    model = student if file.kind == "student" else load_file(file)
    tower = FileTower(name, file.sha256, student.config.out_dim,
                      lambda frames: student.destandardise(model(frames).to(device)))
    store = FeatureStore(config.data / "features", tower.spec, stores[0].spec["source"])
    fill(store, tower, ClipFolder(config.clips), [room.id for room in rooms], device)
    return load_features(store, rooms)


def save_tiny_lm(folder: Path, rooms: list[RoomQuestions], width: int = 128,
                 layers: int = 3) -> None:
    """A random language model of whole words, those of these questions."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    split = pre_tokenizers.Split(Regex(r"[A-Za-z]+|[^A-Za-z\s]"), "removed", invert=True)
    texts = {text for room in rooms for q in room.questions
             for text in (q.prompt, q.answer or "")}
    words = {word for text in texts for word, _ in split.pre_tokenize_str(text)} | {*"0123456789."}
    vocabulary = {w: i for i, w in enumerate(["<end>", "<unk>", *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>",
                            eos_token="<end>").save_pretrained(folder)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=width, intermediate_size=4 * width,
        num_hidden_layers=layers, num_attention_heads=width // 32, bos_token_id=None,
        eos_token_id=0, tie_word_embeddings=True)).save_pretrained(folder)


if __name__ == "__main__":
    run_recipe(main)
