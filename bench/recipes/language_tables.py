"""Where geometry helps the language teacher: one table a command, from many trainings.

    python -m bench.recipes.language_tables sensitivity CLIPS --work DIR --out sensitivity.json

CLIPS is a folder of `vega3d scenes render`. With N GPUs start N of these processes: each takes what
no other has taken, trainings whose rows DIR holds are skipped, an interrupted one resumes, and the
one that finds all rows writes OUT. --lm tiny: three layers from nothing, for a CPU.
"""
import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from bench.recipes.jobs import job_path, locked, share_jobs
from records.results import Row
from scenes.questions.question import POINTER_CHECKS
from teacher.fusion import FUSIONS
from teacher.language.config import FinetuneConfig, LanguageTeacherConfig
from teacher.language.encode import RoomQuestions
from teacher.language.train import read_data, train_language_teacher

NUMERIC = ("camera_distance", "vsi:object_abs_distance", "vsi:object_size_estimation")
TASKS = (*NUMERIC, "depth_order", *POINTER_CHECKS)
SECOND = ("generator", "zeros", "noise", "rgb", "vae_latents")
Options = dict[str, dict[str, Any]]  # of a row


def _crossed(features: tuple[str, ...], variants: Options) -> Options:
    return {f"{one}, {name}": {"features": one, **options}
            for one in features for name, options in variants.items()}


# table -> row -> what differs from the defaults
TABLES: dict[str, Options] = {
    "sensitivity": {
        "true_xyz": {"features": "true_xyz"},
        "depth_pose": {"features": "none", "position": "depth_pose"},
        "semantic": {"features": "none"}, "zeros": {"features": "zeros"},
        "noise": {"features": "noise"}, "place": {"features": "place"},
        "text_only": {"features": "text_only"}},
    "reader": _crossed(("true_xyz", "none"), {
        "pointers and head": {}, "no pointers": {"pointers": False},
        "numbers as text": {"numbers": "text"}}),
    "masking": _crossed(("generator", "none", "true_xyz"), {
        "plain": {}, "masked": {"masking": 0.8, "fusion": "channel_gate"},
        "channel gate": {"fusion": "channel_gate"}, "depth and rays": {"depth_ray": 1.0},
        "layer losses": {"layer_losses": 0.2}}),
    "fusion": {name: {"fusion": name} for name in FUSIONS},
    "questions": {
        name: {"features": name} for name in ("none", "semantic", *SECOND, "true_xyz", "place")}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=tuple(TABLES))
    parser.add_argument("clips", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", help="some of the table's rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=16, help="clips")
    parser.add_argument("--lm", default="smollm2-135m", help="or tiny")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--grid", type=int, default=14)
    parser.add_argument("--draws", type=int, default=3)
    args = parser.parse_args()
    rows = {name: TABLES[args.table][name] for name in args.rows or TABLES[args.table]}
    jobs = {}
    for seed, name in product(args.seeds, rows):
        out = job_path(args.work, args.table, name, seed)
        jobs[out.with_name(f"{out.name}.json")] = args, out, name, rows[name], seed
    share_jobs(jobs, _train, args.out)


def _train(args: argparse.Namespace, out: Path, name: str, options: dict[str, Any],
           seed: int) -> list[Row]:
    """A row for each task and metric of one training."""
    lm, clips, questions = args.lm, args.batch, 8
    if options.get("fusion") == "context_gated":  # as many questions, each with its own tokens
        clips, questions = clips * questions, 1
    tuning = FinetuneConfig(lm=lm, layers=args.layers, steps=args.steps, clips=clips,
                            questions=questions, lr=args.lr, seed=seed, save_every=500,
                            validate_every=args.steps)
    config = replace(LanguageTeacherConfig(
        out=out, clips=args.clips, data=args.work, grid=args.grid, draws=args.draws, tasks=TASKS,
        tuning=tuning), **options)
    with locked(args.work / "data.lock"):
        rooms = read_data(config, Accelerator())[1]
        if lm == "tiny":
            tuning = replace(tuning, lm=str(args.work / "lm"), layers=None)
            config = replace(config, tuning=tuning)
            if not Path(tuning.lm).is_dir():
                save_tiny_lm(Path(tuning.lm), [r for part in rooms.values() for r in part])
    scores = train_language_teacher(config)
    common: Row = {
        "features": name, "seed": seed, "steps": tuning.steps, "lm": lm,
        "train_clips": len(rooms["train"]),
        "train_questions": sum(len(room.questions) for room in rooms["train"])}
    out_rows: list[Row] = []
    for task, metrics in scores.items():
        if task in TASKS:
            check = {"check": "pointers"} if task in POINTER_CHECKS else {}
            out_rows += [{**common, **check, "task": task, "metric": metric, "value": value,
                          "questions": int(metrics["n"])}
                         for metric, value in metrics.items() if metric != "n"]
    out_rows += [{**common, "task": "fused", "metric": metric, "value": value}
                 for metric, value in scores["fused"].items()]
    return out_rows


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
    main()
