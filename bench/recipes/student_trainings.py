"""What helps a student, and what distillation is worth: tables from many short trainings.

    python -m bench.recipes.student_trainings ablation RUN --work DIR --out student_ablation.json
    python -m bench.recipes.student_trainings labels RUN --work DIR --out label_efficiency.json
    python -m bench.recipes.student_trainings arms RUN --work DIR --out app_arms.json --real CLIPS

RUN is a finished `vega3d distill run` on rendered rooms: its clips, features and dense teachers are
used. With N GPUs start N of these processes: each takes what no other has taken, trainings whose
rows DIR holds are skipped, and the one that finds all rows writes OUT.
--real CLIPS: a folder of clips with depth, intrinsics and poses (split test), scored beside rooms:
python -m bench.recipes.rgbd_folders clips FOLDER CLIPS.
"""
import argparse
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.recipes.jobs import job_path, share_jobs
from distill.config import HeadTraining, StudentTraining
from distill.heads import initial_heads, predictions, score
from distill.joint import train_jointly
from distill.loop import build_student, fidelity, train_student
from distill.run import DistillRun, open_distill_run
from distill.stages import score_student
from records.files import locked, read_json, spec_digest
from records.options import RecipeParser
from records.results import Row
from scenes.clip import ClipFolder
from student.config import StudentConfig
from student.heads import StudentWithHeads
from student.vit import Student, load_student
from teacher.data.dataset import Example, Examples, moments
from vega3d import run_recipe

_PATCH = StudentConfig(stem="patch", depth=12)
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {}, "photometric": {"augment": ("photometric",)},
    "no relation loss": {"relation_weight": 0.0}, "no smooth L1": {"l1_weight": 0.0},
    "patch stem": {"model": _PATCH},
    "patch stem, photometric": {"model": _PATCH, "augment": ("photometric",)},
    "ViT-S": {"model": StudentConfig(size="s")}}
# what a student that apps ship is made of, each one addition further; equal steps
ARMS = {"patch stem": ("frozen", "patch stem"),
        "augmentation": ("frozen", "patch stem, photometric"),
        "imagenet start": ("frozen", "photometric"), "labels": ("both", "photometric")}
MODES = ("frozen", "labels", "distil_then_labels", "both")
ROOMS = (50, 200, 1000, 4000)
BRIGHT = 1.5  # exposure of the frames of cosine_bright, whose targets are the clean frames'


def main() -> None:
    parser = RecipeParser("student_trainings", __doc__)
    parser.add_argument("table", choices=("ablation", "labels", "arms"))
    parser.add_argument("run", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rooms", type=int, nargs="+", default=ROOMS)
    parser.add_argument("--epochs", type=int, default=4, help="of distillation")
    parser.add_argument("--batch", type=int, default=128, help="frames")
    parser.add_argument("--head-steps", type=int, default=1000)
    parser.add_argument("--real", type=Path)
    args = parser.parse_args()
    jobs: list[tuple] = list({"ablation": product(args.seeds, VARIANTS),
                              "labels": product(args.seeds, args.rooms, MODES),
                              "arms": product(args.seeds, ARMS)}[args.table])
    trainer = cache(lambda: _Trainer(open_distill_run(args.run), args))
    share_jobs({Path(f"{job_path(args.work, *job)}.json"): job for job in jobs},
               lambda *job: getattr(trainer(), args.table)(*job), args.out)


class _Trainer:
    """The clips of a run in memory, and one method a table."""

    def __init__(self, run: DistillRun, args: argparse.Namespace):
        self.run, self.args = run, args
        self.recorded = read_json(run.folder / "accuracy.json", "run again: vega3d distill run",
                                  kind=list)
        real = ClipFolder(args.real) if args.real else None
        if real and not real.ids("test"):
            raise ValueError(f"{args.real}: holds no clips of split test; make some with: python "
                             "-m bench.recipes.rgbd_folders clips FOLDER CLIPS")
        cameras = args.table != "ablation"
        self.train, self.test = (
            Examples(run.source, run.source.ids(split), run.stores, run.device, cameras)
            for split in ("train", "test"))
        self.moments = moments(self.train, lambda example: example["generative"].float())
        self.sets = {"rooms": self.test}
        if real:
            self.sets["real"] = Examples(real, real.ids("test"), {}, run.device, True)

    def ablation(self, seed: int, variant: str) -> list[Row]:
        torch.compiler.reset()  # else every student counts as a recompilation of the first
        config = replace(self._training(), **VARIANTS[variant])
        student = self._distil(config, seed, variant)
        scores = score_student(self.run, student, variant, self.test, self.run.config.seeds[0],
                               self.recorded)

        def bright(example: Example) -> Tensor:
            frames = example["frames"].float() / 255
            return student.destandardise(student((frames * BRIGHT).clamp(max=1)))

        return [{**scores, "variant": variant, "seed": seed, **self._facts(config, student),
                 "cosine_bright": fidelity(student, self.test, bright)["cosine_mean"]}]

    def arms(self, seed: int, arm: str) -> list[Row]:
        """Labels of all the run's rooms; the heads of all arms have them."""
        mode, variant = ARMS[arm]
        rooms = self.run.config.scenes.train
        return [{"arm": arm, **row} for row in self.labels(seed, rooms, mode, variant)]

    def labels(self, seed: int, rooms: int, mode: str, variant: str = "photometric") -> list[Row]:
        """mode: heads on a frozen distilled student; labels alone; the distilled student goes on
        with labels; distillation and labels at once. Equal steps in all."""
        torch.compiler.reset()
        config, args = replace(self._training(), **VARIANTS[variant]), self.args
        steps = config.epochs * self.train.steps(config.batch)
        labelled = self.train.clips(0, rooms * self.run.config.scenes.clips_per_room)
        joint = HeadTraining(steps=args.head_steps, batch=args.batch // 2, lr=1e-3, init="scratch",
                             student_lr=0.0, feature_weight=0.0)
        if mode in ("frozen", "distil_then_labels"):
            student = self._distil(config, seed, variant)
            if mode == "distil_then_labels":
                joint = replace(joint, student_lr=0.3)
        else:
            student = self._new_student(config, seed)
            joint = replace(joint, steps=joint.steps + steps, student_lr=1.0,
                            feature_weight=float(mode == "both"))
        torch.manual_seed(seed)
        model = StudentWithHeads(student, initial_heads(student, joint)).to(self.run.device)
        train_jointly(model, labelled, joint, config, seed,
                      job_path(args.work, mode, variant, rooms, seed), unlabelled=self.train)
        cosine = fidelity(student, self.test)["cosine_mean"]
        return [{"training": mode, "labelled_rooms": rooms, "seed": seed, "frames_from": name,
                 **self._scores(model, examples), "cosine_mean": cosine,
                 "steps": joint.steps + (0 if mode in ("labels", "both") else steps),
                 **self._facts(config, student)} for name, examples in self.sets.items()]

    def _scores(self, model: StudentWithHeads, examples: Examples) -> Row:
        found = score(predictions(model), examples, model.heads.shape, model.student,
                      views=False)
        return {"delta1": found["delta1"], "delta1_median": found["delta1_median"],
                "normal_deg": found.get("normal_deg"), "match": found["match_descriptor"]}

    def _training(self) -> StudentTraining:
        return StudentTraining(init="scratch", epochs=self.args.epochs, batch=self.args.batch,
                               lr=1e-3)

    def _new_student(self, config: StudentTraining, seed: int) -> Student:
        return build_student(config, spec_digest(self.run.tower.spec), *self.moments, seed)

    def _distil(self, config: StudentTraining, seed: int, name: str) -> Student:
        """Trained, or as an earlier row of this seed left it."""
        folder = job_path(self.args.work, name, seed)
        with locked(folder.with_name(f"{folder.name}.distil.lock")):  # several rows start from it
            if (folder / "student.safetensors").is_file():
                return load_student(folder).to(self.run.device)
            return train_student(self._new_student(config, seed), self.train, self.test, config,
                                 seed, folder)

    def _facts(self, config: StudentTraining, student: Student) -> Row:
        millions = sum(p.numel() for p in student.parameters()) / 1e6
        return {"size": config.model.size, "stem": config.model.stem, "parameters_m": millions,
                "epochs": config.epochs, "batch": config.batch, "train_frames": len(self.train)}


if __name__ == "__main__":
    run_recipe(main)
