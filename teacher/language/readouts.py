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
def readout_scores(model: LanguageTeacher, train: QuestionDataset,
                   test: QuestionDataset) -> dict[str, dict[str, float]]:
    """"fused": R2 of ridge regression from held-out fused tokens to their log depth and rays.
    "gate", if there is one: `_gate_shares` of the test rooms."""
    model.eval()

    def tokens(dataset: QuestionDataset, gates: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """The gates [C*T,1,h,14] of each batch are added to `gates`."""
        for batch in dataset.visual_batches(CLIPS):
            fused, gate = model.fusion(*model.standardise(batch))  # [C*T,W,h,14]
            gates += [] if gate is None else [gate]
            yield (fused[..., :GRID, :].permute(0, 2, 3, 1).flatten(0, 2),
                   depth_and_rays(batch.camera).flatten(0, 3))

    gates: list[Tensor] = []
    depth, *rays = ridge_r2(tokens(train, []), tokens(test, gates))
    out = {"fused": {"depth_r2": depth, "ray_r2": sum(rays) / len(rays)}}
    return out | ({"gate": _gate_shares(torch.cat(gates), test)} if gates else {})


def _gate_shares(gates: Tensor, test: QuestionDataset) -> dict[str, float]:
    """The gate's mean semantic share, in [0,1]: all tokens, those at depth edges, and class/NOUN of
    the masks that questions mention."""
    shares = gates[:, 0, :GRID].float().unflatten(0, (len(test.rooms), -1))     # [N,T,14,14]
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
