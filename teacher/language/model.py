"""The full teacher: fused visual tokens in a language model, which answers in words or points at a
box.

Semantic and generative tokens -> fusion -> 3D positions -> a newline token a row -> any causal
language model of transformers, through `inputs_embeds` (arXiv 2603.19235; 2412.00493). Several
questions about one clip share its visual
tokens: each sees them and itself, none another, which is the same as asking one by one and several
times cheaper.
"""
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teacher.fusion import fusion
from teacher.language.distance_head import DistanceHead, metric_loss
from teacher.language.grounding import GroundHead
from teacher.language.position import PositionMode, sine_position, video_position
from teacher.towers.base import GRID

GROUND, COORD = "<ground>", "<coord>"
SPECIALS = (GROUND, COORD)
# heard: fused, and the language model's states of them
Objects = Literal["fused", "semantic", "heard"]
# the mean of the question's states, standardised; or <ground>'s own
Query = Literal["words", "ground"]
IGNORED = -100  # a position whose next token is nobody's business


@dataclass(frozen=True)
class LanguageShape:
    """What the model is made of, beside the language model."""
    semantic_dim: int
    generative_dim: int                      # 1 where there is no such stream
    fusion: str = "token_gate"               # one of teacher.fusion.FUSIONS
    position: PositionMode = "depth_pose"
    grid: int = 7  # visual tokens to a frame's side in the language model; 14 in the paper
    objects: Objects = "fused"  # tokens a candidate box is known by; the paper: semantic
    # what a grounding question is known by; the paper: the state of <ground>
    query: Query = "words"
    sight: bool = True  # False: the text-only baseline, which sees no token and no box
    metric: float = 0.0  # weight in training of the distances between tokens (teacher.metric)


@dataclass
class VisualInputs:
    """C clips of T frames; features are raw, in half precision."""
    semantic: Tensor            # [C,T,Ds,14,14]
    generative: Tensor | None   # [C,T,Dg,14,14]
    points: Tensor              # [C,T,14,14,3] m, world; teacher.position.token_points
    boxes: Tensor               # [C,M,7] centre, size m, heading rad
    inside: Tensor              # [C,M,T*196] teacher.ground.box_tokens


@dataclass
class QuestionBatch:
    """Q questions about each clip, L tokens each, padded at the right."""
    ids: Tensor         # [C,Q,L] int64; ids from the vocabulary's end on are SPECIALS
    length: Tensor      # [C,Q] tokens of each question
    start: Tensor       # [C,Q] the place whose next token is the answer's first
    labels: Tensor      # [C,Q,A] the answer's tokens, IGNORED behind its end and where it is a box
    coord: Tensor       # [C,Q] the box that <coord> stands for, -1 = none
    candidates: Tensor  # [C,Q,K] boxes that <ground> may mean, -1 = padding
    targets: Tensor     # [C,Q,K] bool


@dataclass
class TeacherOutput:
    hidden: Tensor         # [C,Q,L,W] last hidden state of every question token
    # [C,Q,K+1] logits over candidates and "none of them"; None if nothing was to be grounded
    ground: Tensor | None
    gate: Tensor | None    # [C,T,14,14] semantic share
    visual: Tensor         # [C,V,W] last hidden state of every visual token


class LanguageTeacher(nn.Module):
    """Holds the language model as `lm`; everything else is new. `prefix`: token ids before the
    visual tokens."""
    semantic_mean: Tensor
    semantic_std: Tensor
    generative_mean: Tensor
    generative_std: Tensor
    query_mean: Tensor
    query_std: Tensor
    scale: Tensor
    prefix: Tensor

    def __init__(self, lm: Any, shape: LanguageShape, prefix: list[int]):
        super().__init__()
        self.lm, self.shape = lm, shape
        words = lm.get_input_embeddings().weight
        self.words, width = words.shape
        for name, dim in (("semantic", shape.semantic_dim), ("generative", shape.generative_dim)):
            self.register_buffer(f"{name}_mean", torch.zeros(dim, 1, 1))
            self.register_buffer(f"{name}_std", torch.ones(dim, 1, 1))
        self.register_buffer("query_mean", torch.zeros(width))
        self.register_buffer("query_std", torch.ones(width))
        # visual tokens enter as loud as words: a layer norm's are many times louder, and drown a
        # small model's words
        loud = words.detach().float().square().mean().sqrt(
        ) if words.device.type != "meta" else torch.ones(())
        self.register_buffer("scale", loud)
        self.register_buffer("prefix", torch.tensor(prefix, dtype=torch.long), persistent=False)
        self.fusion = fusion(shape.fusion, shape.semantic_dim, shape.generative_dim, width)
        self.known = nn.Conv2d(shape.semantic_dim, width,
                               1) if shape.objects == "semantic" else None
        self.newline = nn.Parameter(torch.randn(width) * 0.02)
        self.specials = nn.Parameter(torch.randn(len(SPECIALS), width) * 0.02)
        self.ground = GroundHead(width)
        self.metric = DistanceHead(width) if shape.metric and shape.sight else None
        self.heard = nn.Linear(width, width) if shape.objects == "heard" and shape.sight else None

    def forward(self, sight: VisualInputs, asked: QuestionBatch) -> TeacherOutput:
        semantic, generative = self.standardise(sight)  # [C*T,D,14,14]
        clips = sight.semantic.shape[:2]
        fused, gate = self.fusion(semantic, generative)  # [C*T,W,h,14], [C*T,1,..]
        known = fused if self.known is None else self.known(semantic)
        things = self._object_embeddings(sight, known.unflatten(0, clips))  # [C,M,W]
        tokens = self._visual(sight, fused.unflatten(0, clips))  # [C,V,W]
        words = self.embed(asked, things)  # [C,Q,L,W]
        start = self._embed(self.prefix).expand(len(tokens), -1, -1)
        seen, hidden = self._run_decoder(torch.cat([start, tokens], 1), words)  # [C,P,W], [C,Q,L,W]
        visual = seen[:, start.shape[1]:]  # [C,V,W]
        if self.heard is not None:
            things = things + self._heard(visual, sight).to(things.dtype)
        return TeacherOutput(hidden, self._point(hidden, asked, things),
                     None if gate is None else gate.squeeze(1).unflatten(0, clips), visual)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [...,W] -> [...,words]."""
        return self.lm.get_output_embeddings()(hidden)

    def answers(self, heard: TeacherOutput, asked: QuestionBatch) -> Tensor:
        """Logits [C,Q,A,words] of what each answer token should be."""
        length, width = heard.hidden.shape[2:]
        at = asked.start[..., None] + torch.arange(asked.labels.shape[2],
                                                   device=asked.start.device)  # [C,Q,A]
        at = at.clamp_max(length - 1)[..., None].expand(-1, -1, -1, width)
        return self.logits(heard.hidden.gather(2, at))

    def standardise(self, sight: VisualInputs) -> tuple[Tensor, Tensor | None]:
        """Both streams [C*T,D,14,14] by the training set's statistics, in the model's own
        precision."""
        semantic = (sight.semantic.flatten(0, 1).float() - self.semantic_mean) / self.semantic_std
        semantic = semantic.to(self.newline.dtype)
        if sight.generative is None or self.shape.fusion == "semantic_only":
            return semantic, None
        generative = (sight.generative.flatten(0, 1).float() -
                      self.generative_mean) / self.generative_std
        return semantic, generative.to(self.newline.dtype)

    def _object_embeddings(self, sight: VisualInputs, tokens: Tensor) -> Tensor:
        """What each box is known by, [C,M,W]: the mean of its visual tokens, and where its centre
        is in the room (or, pose-free, where its tokens are in the video)."""
        if not self.shape.sight:
            return tokens.new_zeros(*sight.boxes.shape[:2], tokens.shape[2])
        parts = tokens.split(GRID, 3)  # sequence concatenation has two
        # [C,T*196,W]
        flat = sum(p.permute(0, 1, 3, 4, 2).flatten(1, 3) for p in parts) / len(parts)
        pooled = sight.inside.to(flat.dtype) @ flat
        if self.shape.position == "depth_pose":
            place = sine_position(sight.boxes[..., :3], pooled.shape[-1])
        else:
            place = sight.inside.to(flat.dtype) @ self._places(sight, GRID, flat.shape[-1]).flatten(
                1, 3).to(flat.dtype)
        return (pooled + place) * self.scale

    def _visual(self, sight: VisualInputs, fused: Tensor) -> Tensor:
        """[C,T*rows*(grid+1),W]: tokens averaged to the grid, told where they are, a newline after
        each row."""
        c, t, w, h, _ = fused.shape
        if not self.shape.sight:
            return fused.new_zeros(c, 0, w)
        g = self.shape.grid
        small = F.adaptive_avg_pool2d(fused.flatten(0, 1), (g * h // GRID, g))  # [C*T,W,rows,g]
        place = self._places(sight, g, w).repeat(1, 1, h // GRID, 1, 1)  # [C,T,rows,g,W]
        rows = (small.permute(0, 2, 3, 1).unflatten(0, (c, t)) + place) * self.scale
        ends = self.newline.to(rows.dtype).expand(*rows.shape[:3], 1, -1)
        return torch.cat([rows, ends], 3).flatten(1, 3)

    def _places(self, sight: VisualInputs, g: int, width: int) -> Tensor:
        c, t = sight.semantic.shape[:2]
        if self.shape.position == "pose_free":
            return video_position(t, g, width, sight.semantic.device).expand(c, -1, -1, -1, -1)
        return sine_position(self._points(sight, g), width)

    def _points(self, sight: VisualInputs, g: int) -> Tensor:
        """[C,T,g,g,3] m."""
        points = F.adaptive_avg_pool2d(
            sight.points.flatten(0, 1).permute(0, 3, 1, 2).float(), (g, g))
        return points.permute(0, 2, 3, 1).unflatten(0, sight.points.shape[:2])

    def metric_loss(self, heard: TeacherOutput, sight: VisualInputs) -> Tensor:
        """teacher.metric.metric_loss of the visual tokens; of sequence concatenation, of the
        semantic ones."""
        assert self.metric is not None
        points = self._points(sight, self.shape.grid).flatten(1, 3)
        return metric_loss(self.metric, self._states(heard.visual, sight), points)

    def _states(self, visual: Tensor, sight: VisualInputs) -> Tensor:
        """visual [C,V,W] -> [C,T*grid*grid,W]: without the newlines, and of two streams' rows the
        first."""
        t, g = sight.semantic.shape[1], self.shape.grid
        return visual.unflatten(1, (t, -1, g + 1))[:, :, :g, :g].flatten(1, 3)

    def _heard(self, visual: Tensor, sight: VisualInputs) -> Tensor:
        """What the language model makes of each box's tokens, [C,M,W]."""
        assert self.heard is not None
        c, m, _ = sight.inside.shape
        t, g = sight.semantic.shape[1], self.shape.grid
        inside = F.adaptive_avg_pool2d(sight.inside.float().view(c, m * t, GRID, GRID),
                                       g).view(c, m, -1)
        inside = inside / inside.sum(-1, keepdim=True).clamp_min(1e-6)  # [C,M,T*g*g]
        states = F.rms_norm(self._states(visual, sight).float(), visual.shape[-1:])
        return self.heard((inside @ states).to(self.newline.dtype)) * self.scale

    def embed(self, asked: QuestionBatch, things: Tensor) -> Tensor:
        """[C,Q,L,W]; <coord> carries what its box is known by."""
        words = self._embed(asked.ids)
        index = asked.coord.clamp_min(0)[..., None].expand(-1, -1, things.shape[-1])  # [C,Q,W]
        box = things.gather(1, index) if things.shape[1] else words.new_zeros(index.shape)
        spot = (asked.ids == self.words + SPECIALS.index(COORD)) & (asked.coord >= 0)[..., None]
        return words + spot[..., None] * box[:, :, None].to(words.dtype)

    def _embed(self, ids: Tensor) -> Tensor:
        known = ids < self.words
        words = self.lm.get_input_embeddings()(ids.where(known, 0)) * known[..., None]
        # added up, not looked up: a look-up's gradient would add every token of the batch to one
        # row, one by one
        marks = (ids[..., None] == torch.arange(len(SPECIALS), device=ids.device) + self.words).to(
            words.dtype)
        return words + marks @ self.specials.to(words.dtype)

    def _run_decoder(self, shared: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """shared [C,P,W], words [C,Q,L,W] -> the hidden states of both."""
        c, q, l, _ = words.shape
        p = shared.shape[1]
        x = torch.cat([shared.to(words.dtype), words.flatten(1, 2)], 1)  # [C,P+Q*L,W]
        # float32 words would keep every residual in float32
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        position = torch.cat([torch.arange(p, device=x.device),
                              p + torch.arange(l, device=x.device).repeat(q)]).expand(c, -1)
        # one question: plainly causal
        mask = None if q == 1 else question_block_mask(p, q, l, x.device).expand(c, 1, -1, -1)
        out = self.lm.get_decoder()(inputs_embeds=x, position_ids=position, attention_mask=mask,
                                    use_cache=False)
        return out.last_hidden_state[:, :p], out.last_hidden_state[:, p:].unflatten(1, (q, l))

    def query(self, hidden: Tensor, asked: QuestionBatch) -> Tensor:
        """What each grounding question is known by, before it is standardised, [C,Q,W].

        A language model's states are nearly the same whatever was asked: a few channels hold most
        of their energy, and left as they are the head stays at chance for hundreds of steps.
        `set_statistics` therefore standardises them.
        """
        if self.shape.query == "ground":
            mine = (asked.ids == self.words + SPECIALS.index(GROUND)).to(
                hidden.dtype)  # [C,Q,L], one or none
        else:
            mine = (torch.arange(hidden.shape[2], device=hidden.device)
                    < asked.length[..., None]).to(hidden.dtype)
        return torch.einsum("cql,cqlw->cqw", mine, hidden) / mine.sum(-1, keepdim=True).clamp_min(1)

    def _point(self, hidden: Tensor, asked: QuestionBatch, things: Tensor) -> Tensor | None:
        if not asked.candidates.shape[2]:
            return None
        query = (self.query(hidden, asked).float() - self.query_mean) / self.query_std
        rows = torch.arange(len(things), device=things.device)[:, None, None]
        return self.ground(query.to(hidden.dtype),
                           things[rows, asked.candidates.clamp_min(0)].to(hidden.dtype))


def question_block_mask(shared: int, questions: int, length: int, device: torch.device) -> Tensor:
    """Who may look at whom, [1,1,S,S] bool, S = shared + questions * length: earlier tokens of
    one's own question, and of what is shared."""
    owner = (torch.arange(-shared, questions * length, device=device) // length).clamp_min(-1)
    mine = (owner[None] == owner[:, None]) | (owner[None] == -1)
    return mine.tril()[None, None]
