"""Configuration of `vega3d teacher train`. Imports no torch: `--help` reads this module."""
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from records.options import (
    Batch,
    Count,
    Depth,
    Draws,
    Frames,
    Range,
    Rate,
    Seed,
    Share,
    Weight,
    Width,
    check_ranges,
)
from scenes.questions.question import IMPORTED_TASKS, POINTER_CHECKS, TASKS
from teacher.towers.tap import Tap

# semantic: that stream again, for as many weights. true_xyz: each token's ground-truth camera point
# and the log focal length. place: no visual tokens, pointers without features; text_only: none.
# random_weights: the generator's transformer redrawn by the tuning's seed
Features = Literal["generator", "none", "semantic", "zeros", "noise", "rgb", "vae_latents",
                   "true_xyz", "place", "text_only", "random_weights"]
# ways to fuse the two streams (teacher.fusion)
Fusion = Literal["token_gate", "paper_gate", "channel_gate", "residual_gate", "context_gated",
                 "add", "weighted", "channel_concat", "sequence_concat", "cross_attention",
                 "cross_attention_3", "semantic_only", "generative_only"]
Numbers = Literal["head", "text"]  # a regression from the answer's start, or the LM's digits
Choices = Literal["head", "letters"]  # a score of each option's last state, or the LM's letter
PositionMode = Literal["depth_pose", "pose_free"]
Query = Literal["words", "ground"]  # the question's mean hidden state, or that of <ground>
Tune = Literal["frozen", "lora", "full"]
Grid = Annotated[int, Range(1, 14)]
RANK = 16


@dataclass(frozen=True)
class FinetuneConfig:
    lm: str = "smollm2-135m"    # a name, hub id or folder
    layers: Depth | None = None  # the first layers of the language model; None: all
    tune: Tune = "full"         # what of the language model is trained
    lora_rank: Width = RANK     # with tune lora
    steps: Count = 1500         # optimiser steps
    clips: Batch = 8            # per batch
    questions: Batch = 8        # per clip: they share its visual tokens
    accumulate: Batch = 1       # batches per step
    lr: Rate = 2e-4             # of the language model
    lr_new: Rate = 1e-3         # of newly initialised weights
    warm: Share = 0.03          # share of the steps
    weight_decay: Share = 0.0   # of AdamW
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on a GPU
    recompute: bool = False     # activation checkpointing of every layer
    graphed: bool = True        # on one GPU in bf16: a step is one CUDA graph
    compiled: bool = False      # with graphed: compiles the language model's layers, a minute once
    save_every: Count = 200     # steps
    validate_every: Count = 100  # steps
    seed: Seed = 0              # of new weights and batches

    def __post_init__(self) -> None:
        check_ranges(self, "tuning")


@dataclass(frozen=True)
class LanguageTeacherConfig:
    out: Path = Path("runs/teacher")
    clips: Path | None = None  # of `vega3d scenes render`; None: rooms are rendered into OUT/clips
    data: Path | None = None   # features and questions, to share between trainings; None: OUT
    rooms: Count = 200  # to render: 80 % training, 10 % validation, 10 % test
    frames: Frames = 5                  # per rendered clip
    semantic: str = "efficientnet-lite0"  # or siglip-so400m, siglip2-so400m, a SigLIP's hub id
    features: Features = "generator"    # second stream, or a control; none: semantic only
    generator: str = "wan-nano"         # a name, a hub id or a diffusers folder
    tap: Tap = field(default_factory=Tap)
    fusion: Fusion = "token_gate"       # of the two streams; with features none: not used
    position: PositionMode = "pose_free"  # of tokens: in the world, or in the video
    grid: Grid = 14                     # visual tokens along a frame's side
    pointers: bool = True               # regions of the objects that a question mentions
    numbers: Numbers = "head"           # what answers a number
    choices: Choices = "head"           # what answers a multiple choice
    masking: Share = 0.0  # share of the semantic tokens zeroed in half of the training frames
    # loss weight of depth and rays read from the fused tokens; 0 if the clips have no depth
    depth_ray: Weight = 0.0
    layer_losses: Weight = 0.0  # of matches and depth read from the language model's middle layer
    query: Query = "words"  # grounding query: mean hidden state of the question, or of <ground>
    draws: Draws = 1  # training question draws per clip, of distances and single boxes
    tasks: tuple[str, ...] = TASKS      # question tasks
    tuning: FinetuneConfig = field(default_factory=FinetuneConfig)
    exam: bool = True                   # evaluate on the test rooms after training

    def __post_init__(self) -> None:
        check_ranges(self, "teacher", filled=("tasks",))
        if unknown := sorted(set(self.tasks) - {*IMPORTED_TASKS, *POINTER_CHECKS}):
            raise ValueError(f"teacher: no task {unknown[0]!r}; expected: {', '.join(TASKS)}")
        if self.fusion == "context_gated" and self.tuning.questions > 1:
            raise ValueError("teacher: fusion context_gated makes a clip's tokens depend on the "
                             f"question, got {self.tuning.questions} questions a clip; give "
                             "--tuning.questions 1")
        if self.rooms < 10 and self.clips is None:
            raise ValueError(f"teacher: got rooms={self.rooms}, expected at least 10")


RECIPES = {
    # without the loss on depth and rays the token gate is near one end, which one by chance
    # (bench/results/masking_ablation.json)
    "embedded": LanguageTeacherConfig(grid=7, draws=3, depth_ray=1.0, tuning=FinetuneConfig(
        layers=6, steps=2400, clips=16, questions=4, lr=5e-4, warm=0.1)),
    # arXiv 2603.19235: 128 questions a step over 8 GPUs (bench/recipes/paper_fsdp.yaml; memory:
    # vega3d teacher plan)
    "paper": LanguageTeacherConfig(
        semantic="siglip-so400m", generator="wan2.1-t2v-1.3b", frames=32, position="depth_pose",
        tap=Tap(block=20, k=300, seeds=1), query="ground", pointers=False, numbers="text",
        choices="letters",
        tuning=FinetuneConfig(lm="llava-video-7b", steps=1500, clips=1, questions=1,
                              accumulate=16, lr=1e-5, lr_new=1e-5, recompute=True)),
}


def recipe(name: str) -> LanguageTeacherConfig:
    """One of RECIPES. Raises ValueError that lists them."""
    if name not in RECIPES:
        raise ValueError(f"teacher: no recipe {name!r}; expected one of: {', '.join(RECIPES)}")
    return RECIPES[name]
