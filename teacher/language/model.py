"""The full teacher: fused visual tokens in a causal language model, which answers or grounds.

Semantic and generative tokens -> fusion -> 3D positions -> a newline token after each row -> any
causal language model, through `inputs_embeds` (arXiv 2603.19235; 2412.00493). Questions about one
clip share its visual tokens; a mask keeps them apart, so the result is that of one at a time.
"""
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teacher.fusion import fusion
from teacher.language.config import Objects, PositionMode, Query
from teacher.language.grounding import GroundHead
from teacher.language.position import DistanceHead, distance_loss, sine_position, video_position
from teacher.towers.base import GRID

GROUND, COORD = "<ground>", "<coord>"
SPECIALS = (GROUND, COORD)
IGNORED = -100  # label of a position that the loss ignores
# module names of this class -> names in saved teachers
SAVED_NAMES = {"object_projection.": "known.", "state_projection.": "heard.",
               "distance_head.": "metric.", "ground.query_proj.": "ground.ask.",
               "ground.object_proj.": "ground.thing."}


@dataclass(frozen=True)
class LanguageShape:
    """Everything that changes the teacher's weights or inputs, apart from the language model."""
    semantic_dim: int
    generative_dim: int                      # 1 without a generative stream
    fusion: str = "token_gate"               # one of teacher.fusion.FUSIONS
    position: PositionMode = "depth_pose"
    grid: int = 7  # visual tokens along a frame's side; the paper: 14
    objects: Objects = "fused"               # tokens that represent a box; the paper: semantic
    query: Query = "words"                   # grounding query; the paper: ground
    sight: bool = True  # False: text-only baseline without visual tokens and boxes
    metric: float = 0.0                      # weight of `distance_loss`


@dataclass
class VisualInputs:
    """C clips of T frames and M boxes; features are not standardised."""
    semantic: Tensor            # [C,T,Ds,14,14] half
    generative: Tensor | None   # [C,T,Dg,14,14] half
    points: Tensor              # [C,T,14,14,3] m, world; position.mean_token_points
    boxes: Tensor               # [C,M,7] centre m, size m, heading rad
    inside: Tensor              # [C,M,T*196] grounding.box_tokens


@dataclass
class QuestionBatch:
    """Q questions about each clip, L tokens each, padded at the right."""
    ids: Tensor           # [C,Q,L] int64; SPECIALS have the ids after the vocabulary
    length: Tensor        # [C,Q] tokens of each question
    answer_start: Tensor  # [C,Q] the position that predicts the first answer token
    labels: Tensor        # [C,Q,A] answer tokens; IGNORED after the end and for boxes
    coord: Tensor         # [C,Q] index of the box that <coord> stands for; -1: none
    candidates: Tensor    # [C,Q,K] indices of the candidate boxes; -1: padding
    targets: Tensor       # [C,Q,K] bool


@dataclass
class TeacherOutput:
    hidden: Tensor         # [C,Q,L,W] last hidden states of the questions
    ground: Tensor | None  # [C,Q,K+1] logits of the candidates and "none"; None without candidates
    gate: Tensor | None    # [C,T,14,14] semantic share
    visual_hidden: Tensor  # [C,V,W] last hidden states of the visual tokens


class LanguageTeacher(nn.Module):
    """lm: the language model; other weights are new. prefix: ids before the visual tokens."""
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
        embedding = lm.get_input_embeddings().weight
        self.vocab_size, width = embedding.shape
        for name, dim in (("semantic", shape.semantic_dim), ("generative", shape.generative_dim)):
            self.register_buffer(f"{name}_mean", torch.zeros(dim, 1, 1))
            self.register_buffer(f"{name}_std", torch.ones(dim, 1, 1))
        self.register_buffer("query_mean", torch.zeros(width))
        self.register_buffer("query_std", torch.ones(width))
        # visual tokens get the RMS of word embeddings: larger ones would drown the words
        self.register_buffer("scale", _rms(embedding))
        self.register_buffer("prefix", torch.tensor(prefix, dtype=torch.long), persistent=False)
        self.fusion = fusion(shape.fusion, shape.semantic_dim, shape.generative_dim, width)
        self.object_projection = (nn.Conv2d(shape.semantic_dim, width, 1)
                                  if shape.objects == "semantic" else None)
        self.newline = nn.Parameter(torch.randn(width) * 0.02)
        self.specials = nn.Parameter(torch.randn(len(SPECIALS), width) * 0.02)
        self.ground = GroundHead(width)
        self.distance_head = DistanceHead(width) if shape.metric and shape.sight else None
        self.state_projection = (nn.Linear(width, width)
                                 if shape.objects == "heard" and shape.sight else None)

    def forward(self, visual: VisualInputs, questions: QuestionBatch) -> TeacherOutput:
        semantic, generative = self.standardise(visual)           # [C*T,D,14,14]
        clips = visual.semantic.shape[:2]
        fused, gate = self.fusion(semantic, generative)           # [C*T,W,h,14], [C*T,1,h,14]
        box_tokens = fused if self.object_projection is None else self.object_projection(semantic)
        objects = self._object_embeddings(visual, box_tokens.unflatten(0, clips))  # [C,M,W]
        tokens = self.visual_tokens(visual, fused.unflatten(0, clips))             # [C,V,W]
        words = self.embed_questions(questions, objects)          # [C,Q,L,W]
        prefix = self._embed(self.prefix).expand(len(tokens), -1, -1)
        shared, hidden = self._run_decoder(torch.cat([prefix, tokens], 1), words)
        visual_hidden = shared[:, prefix.shape[1]:]               # [C,V,W]
        if self.state_projection is not None:
            objects = objects + self._object_states(visual_hidden, visual).to(objects.dtype)
        gate = None if gate is None else gate.squeeze(1).unflatten(0, clips)
        return TeacherOutput(hidden, self._ground_logits(hidden, questions, objects), gate,
                             visual_hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm.get_output_embeddings()(hidden)

    def answer_logits(self, output: TeacherOutput, questions: QuestionBatch) -> Tensor:
        """Logits [C,Q,A,vocabulary] of each answer token."""
        length, width = output.hidden.shape[2:]
        offsets = torch.arange(questions.labels.shape[2], device=questions.labels.device)
        at = questions.answer_start[..., None] + offsets          # [C,Q,A]
        at = at.clamp_max(length - 1)[..., None].expand(-1, -1, -1, width)
        return self.logits(output.hidden.gather(2, at))

    def distance_loss(self, output: TeacherOutput, visual: VisualInputs) -> Tensor:
        """position.distance_loss of the visual tokens (of two streams in a sequence: the first)."""
        assert self.distance_head is not None
        points = self.cell_points(visual, self.shape.grid).flatten(1, 3)
        return distance_loss(self.distance_head, self._cell_states(output.visual_hidden, visual),
                             points)

    def grounding_query(self, hidden: Tensor, questions: QuestionBatch) -> Tensor:
        """The vector that represents each grounding question, before standardisation, [C,Q,W]."""
        if self.shape.query == "ground":
            mask = questions.ids == self.vocab_size + SPECIALS.index(GROUND)  # one or none
        else:
            places = torch.arange(hidden.shape[2], device=hidden.device)
            mask = places < questions.length[..., None]
        mask = mask.to(hidden.dtype)                              # [C,Q,L]
        total = torch.einsum("cql,cqlw->cqw", mask, hidden)
        return total / mask.sum(-1, keepdim=True).clamp_min(1)

    def standardise(self, visual: VisualInputs) -> tuple[Tensor, Tensor | None]:
        """Both streams [C*T,D,14,14], by the training set's statistics, in the model's dtype."""
        semantic = (visual.semantic.flatten(0, 1).float() - self.semantic_mean) / self.semantic_std
        semantic = semantic.to(self.newline.dtype)
        if visual.generative is None or self.shape.fusion == "semantic_only":
            return semantic, None
        generative = visual.generative.flatten(0, 1).float()
        generative = (generative - self.generative_mean) / self.generative_std
        return semantic, generative.to(self.newline.dtype)

    def visual_tokens(self, visual: VisualInputs, fused: Tensor) -> Tensor:
        """fused [C,T,W,h,14] -> [C,T*rows*(grid+1),W]: on the grid, with positions and newlines."""
        c, t, w, h, _ = fused.shape
        if not self.shape.sight:
            return fused.new_zeros(c, 0, w)
        g = self.shape.grid
        small = F.adaptive_avg_pool2d(fused.flatten(0, 1), (g * h // GRID, g))  # [C*T,W,rows,g]
        position = self._positions(visual, g, w).repeat(1, 1, h // GRID, 1, 1)  # [C,T,rows,g,W]
        rows = (small.permute(0, 2, 3, 1).unflatten(0, (c, t)) + position) * self.scale
        ends = self.newline.to(rows.dtype).expand(*rows.shape[:3], 1, -1)
        return torch.cat([rows, ends], 3).flatten(1, 3)

    def embed_questions(self, questions: QuestionBatch, objects: Tensor) -> Tensor:
        """[C,Q,L,W]; the embedding of its box is added to <coord>."""
        words = self._embed(questions.ids)
        index = questions.coord.clamp_min(0)[..., None].expand(-1, -1, objects.shape[-1])  # [C,Q,W]
        box = objects.gather(1, index) if objects.shape[1] else words.new_zeros(index.shape)
        is_coord = questions.ids == self.vocab_size + SPECIALS.index(COORD)
        is_coord = is_coord & (questions.coord >= 0)[..., None]
        return words + is_coord[..., None] * box[:, :, None].to(words.dtype)

    def cell_points(self, visual: VisualInputs, g: int) -> Tensor:
        """World points averaged to a grid of g x g, [C,T,g,g,3] m."""
        points = visual.points.flatten(0, 1).permute(0, 3, 1, 2).float()
        points = F.adaptive_avg_pool2d(points, (g, g))
        return points.permute(0, 2, 3, 1).unflatten(0, visual.points.shape[:2])

    def run_layers(self, embeds: Tensor, position_ids: Tensor, mask: Tensor | None) -> Tensor:
        """Last hidden states [C,S,W] of input embeddings [C,S,W]."""
        return self.lm.get_decoder()(inputs_embeds=embeds, position_ids=position_ids,
                                     attention_mask=mask, use_cache=False).last_hidden_state

    def _object_embeddings(self, visual: VisualInputs, tokens: Tensor) -> Tensor:
        """[C,M,W]: the mean of each box's tokens, and its centre's position (pose-free: theirs)."""
        if not self.shape.sight:
            return tokens.new_zeros(*visual.boxes.shape[:2], tokens.shape[2])
        parts = tokens.split(GRID, 3)  # two of a fusion that concatenates sequences
        flat = sum(p.permute(0, 1, 3, 4, 2).flatten(1, 3) for p in parts)
        flat = flat / len(parts)  # [C,T*196,W]
        inside = visual.inside.to(flat.dtype)
        pooled = inside @ flat
        if self.shape.position == "depth_pose":
            position = sine_position(visual.boxes[..., :3], pooled.shape[-1])
        else:
            cells = self._positions(visual, GRID, flat.shape[-1]).flatten(1, 3)
            position = inside @ cells.to(flat.dtype)
        return (pooled + position) * self.scale

    def _positions(self, visual: VisualInputs, g: int, width: int) -> Tensor:
        """[C,T,g,g,W] float32."""
        c, t = visual.semantic.shape[:2]
        if self.shape.position == "pose_free":
            code = video_position(t, g, width, visual.semantic.device)
            return code.expand(c, -1, -1, -1, -1)
        return sine_position(self.cell_points(visual, g), width)

    def _embed(self, ids: Tensor) -> Tensor:
        in_vocabulary = ids < self.vocab_size
        words = self.lm.get_input_embeddings()(ids.where(in_vocabulary, 0))
        # a product: the gradient of a look-up adds all tokens to one row, one after another
        special_ids = torch.arange(len(SPECIALS), device=ids.device) + self.vocab_size
        one_hot = (ids[..., None] == special_ids).to(words.dtype)
        return words * in_vocabulary[..., None] + one_hot @ self.specials.to(words.dtype)

    def _run_decoder(self, shared: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states of both: shared [C,P,W], words [C,Q,L,W]."""
        c, q, l, _ = words.shape
        p = shared.shape[1]
        x = torch.cat([shared.to(words.dtype), words.flatten(1, 2)], 1)  # [C,P+Q*L,W]
        # float32 inputs would keep every residual in float32
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        position = torch.cat([torch.arange(p, device=x.device),
                              p + torch.arange(l, device=x.device).repeat(q)]).expand(c, -1)
        # None (one question): causal
        mask = question_block_mask(p, q, l, x.device).expand(c, 1, -1, -1) if q > 1 else None
        hidden = self.run_layers(x, position, mask)
        return hidden[:, :p], hidden[:, p:].unflatten(1, (q, l))

    def _object_states(self, visual_hidden: Tensor, visual: VisualInputs) -> Tensor:
        """The language model's hidden states of each box's tokens, projected, [C,M,W]."""
        assert self.state_projection is not None
        c, m, _ = visual.inside.shape
        t, g = visual.semantic.shape[1], self.shape.grid
        inside = visual.inside.float().view(c, m * t, GRID, GRID)
        inside = F.adaptive_avg_pool2d(inside, g).view(c, m, -1)  # [C,M,T*g*g]
        inside = inside / inside.sum(-1, keepdim=True).clamp_min(1e-6)
        states = self._cell_states(visual_hidden, visual).float()
        states = F.rms_norm(states, visual_hidden.shape[-1:])
        return self.state_projection((inside @ states).to(self.newline.dtype)) * self.scale

    def _cell_states(self, visual_hidden: Tensor, visual: VisualInputs) -> Tensor:
        """[C,V,W] -> [C,T*grid*grid,W]: no newlines; of two streams in a sequence, the first."""
        t, g = visual.semantic.shape[1], self.shape.grid
        return visual_hidden.unflatten(1, (t, -1, g + 1))[:, :, :g, :g].flatten(1, 3)

    def _ground_logits(self, hidden: Tensor, questions: QuestionBatch,
                       objects: Tensor) -> Tensor | None:
        if not questions.candidates.shape[2]:
            return None
        query = self.grounding_query(hidden, questions).float()
        # without this the head stays at chance long: few channels hold most of the energy
        query = (query - self.query_mean) / self.query_std
        clip = torch.arange(len(objects), device=objects.device)[:, None, None]
        candidates = objects[clip, questions.candidates.clamp_min(0)]  # [C,Q,K,W]
        return self.ground(query.to(hidden.dtype), candidates.to(hidden.dtype))


def question_block_mask(shared: int, questions: int, length: int, device: torch.device) -> Tensor:
    """[1,1,S,S] bool, S = shared + questions * length: causal, and questions do not see others."""
    owner = (torch.arange(-shared, questions * length, device=device) // length).clamp_min(-1)
    visible = (owner[None] == owner[:, None]) | (owner[None] == -1)
    return visible.tril()[None, None]


def _rms(embedding: Tensor) -> Tensor:
    if embedding.device.type == "meta":
        return torch.ones(())
    return embedding.detach().float().square().mean().sqrt()
