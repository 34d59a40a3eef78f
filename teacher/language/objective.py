"""The training loss of the full teacher, also in the form that CUDA graphs need."""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teacher.language.dataset import Batch
from teacher.language.grounding import ground_loss
from teacher.language.model import IGNORED, LanguageTeacher, QuestionBatch, VisualInputs

NUMBER_BETA = 0.1  # a relative error of 10 %: smaller ones are squared
RECOMPILE_LIMIT = 256  # compiled shapes: one a question family, of every model in this process


class Objective(nn.Module):
    """The loss of a batch as one module, so that FSDP and DDP see every weight in one forward."""

    def __init__(self, teacher: LanguageTeacher):
        super().__init__()
        self.teacher = teacher

    def forward(self, batch: Batch) -> Tensor:
        """Answer cross-entropy, box InfoNCE or smooth L1 of log numbers, and in training the
        losses of geometry; a scalar."""
        questions = batch.questions
        output = self.teacher(batch.visual, questions)
        if output.ground is not None:
            loss = ground_loss(output.ground, questions.targets, questions.candidates >= 0)
        elif not questions.labels.shape[2]:  # no answer has tokens: all are numbers
            assert output.number is not None
            loss = F.smooth_l1_loss(output.number.float(), questions.number, beta=NUMBER_BETA)
        else:
            logits = self.teacher.answer_logits(output, questions).flatten(0, 2).float()
            loss = F.cross_entropy(logits, questions.labels.flatten(), ignore_index=IGNORED)
        if self.training:
            loss = loss + self.teacher.geometry_loss(output, batch.visual)
        return loss


class FlatInputsObjective(nn.Module):
    """`Objective` of separate tensors (names of `flatten_batch`), as CUDA graphs need it."""

    def __init__(self, objective: Objective, names: list[str], compiled: bool = False):
        super().__init__()
        self.objective, self.names = objective, names
        self.decoder = objective.teacher.lm.get_decoder()
        self.plain_layers = self.decoder.layers
        self.layers = self.plain_layers
        if compiled:  # in this module's forward only
            layers: list[Any] = [torch.compile(layer, fullgraph=True, dynamic=False)
                                 for layer in self.plain_layers]
            self.layers = nn.ModuleList(layers)

    def forward(self, *tensors: Tensor) -> Tensor:
        parts: dict[str, dict[str, Any]] = {"visual": {"generative": None}, "questions": {}}
        for name, tensor in zip(self.names, tensors, strict=True):
            part, _, field = name.partition(".")
            parts[part][field] = tensor
        batch = Batch(VisualInputs(**parts["visual"]), QuestionBatch(**parts["questions"]), [])
        self.decoder.layers = self.layers
        try:
            with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT):
                return self.objective(batch)
        finally:
            self.decoder.layers = self.plain_layers


def flatten_batch(batch: Batch) -> dict[str, Tensor]:
    """A batch's tensors by the names that `FlatInputsObjective` takes."""
    tensors = {}
    for part in ("visual", "questions"):
        for name, value in vars(getattr(batch, part)).items():
            if value is not None:
                tensors[f"{part}.{name}"] = value
    return tensors
