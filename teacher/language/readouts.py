"""What the fused tokens of held-out clips hold: geometry, and how much of each stream."""
from collections.abc import Iterator

import torch
from torch import Tensor

from teacher.language.dataset import QuestionDataset
from teacher.language.geometry_losses import depth_and_rays, depth_edges, ridge_r2
from teacher.language.model import LanguageTeacher
from teacher.towers.base import GRID

CLIPS = 16  # a batch
MASKS = 20  # of a class at least, for its own share


@torch.no_grad()
def fused_r2(model: LanguageTeacher, train: QuestionDataset,
             test: QuestionDataset) -> dict[str, float]:
    """R2 of ridge regression from held-out fused tokens to their log depth and rays."""
    model.eval()

    def tokens(dataset: QuestionDataset) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in dataset.visual_batches(CLIPS):
            fused = model.fusion(*model.standardise(batch))[0][..., :GRID, :]  # [C*T,W,14,14]
            yield (fused.permute(0, 2, 3, 1).flatten(0, 2),
                   depth_and_rays(batch.camera).flatten(0, 3))

    depth, *rays = ridge_r2(tokens(train), tokens(test))
    return {"depth_r2": depth, "ray_r2": sum(rays) / len(rays)}


@torch.no_grad()
def gate_shares(model: LanguageTeacher, test: QuestionDataset) -> dict[str, float]:
    """The gate's mean semantic share, in [0,1]: all tokens, those at depth edges, and class/NOUN of
    the masks that questions mention. Empty without a gate."""
    model.eval()
    parts = [model.fusion(*model.standardise(batch))[1] for batch in test.visual_batches(CLIPS)]
    if parts[0] is None:
        return {}
    shares = torch.cat([part for part in parts if part is not None])[:, 0, :GRID].float()
    shares = shares.unflatten(0, (len(test.rooms), -1))                         # [N,T,14,14]
    out = {"all": float(shares.mean()),
           "depth_edges": float(shares[depth_edges(test.visual.camera)].mean())}
    masks: dict[str, list[Tensor]] = {}  # noun -> [share summed over a mask's tokens, tokens]
    for i, room in enumerate(test.rooms):
        inside = test.visual.inside[i].float()                                  # [R,T*196]
        sums = torch.stack([inside @ shares[i].flatten(), inside.sum(1)], 1)
        pairs = zip(room.questions, room.mentions, strict=True)
        for row, noun in sorted({
                (row, mention[0]) for question, rows in pairs
                for row, mention in zip(rows, question.mentions, strict=True)}):
            masks.setdefault(noun, []).append(sums[row])
    for noun, found in sorted(masks.items()):
        if len(found) >= MASKS:
            total, tokens = torch.stack(found).sum(0).tolist()
            out[f"class/{noun}"] = total / tokens
    return out
