"""What visual tokens show, named from their hidden states: words and pictures tied together in training.

A language model that never saw a picture (SmolLM2) has to find out from rooms' answers alone that "sofa" means some of
the visual tokens, and until it has, it cannot read how far the sofa is from the door. Training rooms say what each token
shows; at test time nobody needs that, nor this head. Not in the paper, whose language model could see before.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 0.07
PATCHES = 64    # a clip and step


class NamingHead(nn.Module):
    """Hidden states [...,W] against the embeddings of nouns [K,W] -> logits [...,K]: cosines / 0.07."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Linear(width, width)

    def forward(self, states: Tensor, nouns: Tensor) -> Tensor:
        asked = F.normalize(self.net(F.rms_norm(states, states.shape[-1:])).float(), dim=-1)
        keys = F.normalize(nouns.float() - nouns.float().mean(0), dim=-1)  # embeddings share a large part
        return asked @ keys.T / TEMPERATURE


def naming_loss(head: NamingHead, states: Tensor, shown: Tensor, nouns: Tensor) -> Tensor:
    """Cross-entropy of the noun that each of PATCHES patches a clip shows, drawn anew each time; float32 scalar.

    states [C,T,g,g,W] of visual tokens, shown [C,T,H,H] index of what a patch shows, -1 = nothing with a name,
    nouns [K,W] embeddings. A token is of several patches where g < H, and is asked for each of them.
    """
    c, t, g, _, w = states.shape
    h = shown.shape[2]
    pick = torch.randint(t * h * h, (c, PATCHES), device=states.device)
    frame, row, column = pick // (h * h), pick // h % h * g // h, pick % h * g // h
    token = (frame * g + row) * g + column                                                    # [C,PATCHES]
    mine = states.flatten(1, 3).gather(1, token[..., None].expand(-1, -1, w))                 # [C,PATCHES,W]
    told, right = head(mine, nouns).flatten(0, 1), shown.flatten(1).gather(1, pick).flatten()
    lost = F.cross_entropy(told, right, ignore_index=-1, reduction="sum")
    return lost / (right >= 0).sum().clamp_min(1)


def embedded(words: Tensor, ids: Tensor) -> Tensor:
    """What nouns are known by: the mean of their tokens' embeddings. words [V,W], ids [K,L] padded with -1 -> [K,W]."""
    real = (ids >= 0).to(words.dtype)
    return torch.einsum("kl,klw->kw", real, words[ids.clamp_min(0)]) / real.sum(1, keepdim=True)
