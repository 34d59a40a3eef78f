"""The full teacher: fused visual tokens in a causal language model, which answers or grounds.

Semantic and generative tokens -> fusion -> 3D positions -> a newline token after each row -> any
causal language model, through `inputs_embeds` (arXiv 2603.19235; 2412.00493). Questions about one
clip share its visual tokens; a mask keeps them apart, so the result is that of one at a time.
"""
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scenes.questions.question import POINTER
from teacher.fusion import fusion
from teacher.language.config import Choices, Numbers, PositionMode, Query
from teacher.language.geometry_losses import DepthRayHead, LayerLosses
from teacher.language.grounding import PLACE, GroundHead, place_and_area, region_weights
from teacher.language.position import sine_position, video_position
from teacher.towers.base import GRID

GROUND = "<ground>"
SPECIALS = (GROUND, POINTER)
ORDERS = 8      # pointers of a question that are told apart
MOMENTUM = 0.1  # share of a batch in the running statistics of states
IGNORED = -100  # label of a position that the loss ignores
# module names of this class -> names in saved teachers
SAVED_NAMES = {"object_projection.": "known.", "ground.query_proj.": "ground.ask.",
               "ground.object_proj.": "ground.thing."}
Inputs = Literal["tokens", "place", "text"]


@dataclass(frozen=True)
class LanguageShape:
    """Everything that changes the teacher's weights or inputs, apart from the language model."""
    semantic_dim: int
    generative_dim: int                      # 1 without a generative stream
    fusion: str = "token_gate"               # one of teacher.fusion.FUSIONS
    position: PositionMode = "pose_free"
    grid: int = 14                           # visual tokens along a frame's side
    query: Query = "words"                   # grounding query; the paper: ground
    pointers: bool = True                    # regions of the objects that a question mentions
    numbers: Numbers = "head"                # what answers a number
    # "place": no visual tokens, pointers without features; "text": no pointers either. Candidates
    # of grounding are the same in all
    inputs: Inputs = "tokens"
    masking: float = 0.0    # share of semantic tokens zeroed in half of the training frames
    depth_ray: float = 0.0  # weight of DepthRayHead's loss
    layer_losses: float = 0.0  # weight of LayerLosses
    choices: Choices = "letters"  # what answers a multiple choice


@dataclass
class VisualInputs:
    """C clips of T frames and M boxes; features are not standardised."""
    semantic: Tensor            # [C,T,Ds,14,14] half
    generative: Tensor | None   # [C,T,Dg,14,14] half
    points: Tensor              # [C,T,14,14,3] m, world; position.mean_token_points
    camera: Tensor              # [C,T,14,14,3] m, each frame's camera; only for training losses
    focal: Tensor               # [C] log(focal length / width)
    boxes: Tensor               # [C,R,7] centre m, size m, heading rad; zeros for a pointer
    inside: Tensor              # [C,R,T*196] share of each token that is in the region


@dataclass
class QuestionBatch:
    """Q questions about each clip, L tokens each, padded at the right."""
    ids: Tensor           # [C,Q,L] int64; SPECIALS have the ids after the vocabulary
    length: Tensor        # [C,Q] tokens of each question
    answer_start: Tensor  # [C,Q] the position that predicts the first answer token
    labels: Tensor        # [C,Q,A] answer tokens; IGNORED after the end and for boxes
    number: Tensor        # [C,Q] log of the answer in metres; NaN: none
    coords: Tensor        # [C,Q,P] regions that the <coord>s stand for, in order; -1: none
    candidates: Tensor    # [C,Q,K] indices of the candidate boxes; -1: padding
    targets: Tensor       # [C,Q,K] bool
    options: Tensor       # [C,Q,O] position of each option's last token; -1: padding
    right: Tensor         # [C,Q] index of the right option

    @property
    def numeric(self) -> bool:
        """Whether the numeric head answers all: no answer has tokens, nothing is offered."""
        return not any(x.shape[2] for x in (self.labels, self.candidates, self.options))


@dataclass
class TeacherOutput:
    hidden: Tensor         # [C,Q,L,W] last hidden states of the questions
    ground: Tensor | None  # [C,Q,K+1] logits of the candidates and "none"; None without candidates
    gate: Tensor | None    # [C,T,14,14] semantic share
    number: Tensor | None  # [C,Q] predicted QuestionBatch.number
    choice: Tensor | None  # [C,Q,O] logits of the options; None without options
    fused: Tensor          # [C,T,W,h,14] fused tokens, before positions
    layer: Tensor | None   # [C,V,W] middle layer's states of the visual tokens


class LanguageTeacher(nn.Module):
    """lm: the language model; other weights are new. prefix: ids before the visual tokens."""
    scale: Tensor
    prefix: Tensor

    def __init__(self, lm: Any, shape: LanguageShape, prefix: list[int]):
        super().__init__()
        self.lm, self.shape = lm, shape
        embedding = lm.get_input_embeddings().weight
        self.vocab_size, width = embedding.shape
        standardised = {"semantic": (shape.semantic_dim, 1, 1),
                        "generative": (shape.generative_dim, 1, 1),
                        "query": (width,), "answer": (width,)}
        if shape.choices == "head":
            standardised["option"] = (2 * width,)
        if shape.pointers:
            standardised |= {"look": (width,), "where": (width,), "pair": (width,)}
        for name, size in standardised.items():
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))
        # visual tokens get the RMS of word embeddings: larger ones would drown the words
        self.register_buffer("scale", _rms(embedding))
        self.register_buffer("prefix", torch.tensor(prefix, dtype=torch.long), persistent=False)
        self.fusion = fusion(shape.fusion, shape.semantic_dim, shape.generative_dim, width)
        self.object_projection = nn.Conv2d(shape.semantic_dim, width, 1)
        self.newline = nn.Parameter(torch.randn(width) * 0.02)
        self.specials = nn.Parameter(torch.randn(len(SPECIALS), width) * 0.02)
        self.order = nn.Parameter(torch.randn(ORDERS, width)) if shape.pointers else None
        parts = 2 if shape.inputs == "tokens" else 1  # of `pointers`
        self.pair = _mlp(2 * parts * width, width, width) if shape.pointers else None
        self.ground = GroundHead(width)
        self.place = _mlp(PLACE, width, width) if shape.pointers else None
        self.focal = nn.Linear(1, width) if shape.position == "pose_free" else None
        self.number_head = _mlp(width, width, 1) if shape.numbers == "head" else None
        self.choice_head = _mlp(2 * width, width, 1) if shape.choices == "head" else None
        self.depth_ray = DepthRayHead(width) if shape.depth_ray else None
        self.layer_losses = LayerLosses(width) if shape.layer_losses else None

    def forward(self, visual: VisualInputs, questions: QuestionBatch) -> TeacherOutput:
        semantic, generative = self.standardise(visual)           # [C*T,D,14,14]
        clips = visual.semantic.shape[:2]
        context = self._context(questions).repeat_interleave(clips[1], 0)
        # [C*T,W,h,14], [C*T,1,h,14]
        fused, gate = self.fusion(self._masked(semantic), generative, context)
        fused = fused.unflatten(0, clips)
        objects = self.object_projection(semantic).unflatten(0, clips)
        weights = region_weights(visual.inside)                   # [C,R,T*196]
        where = self.places(visual, weights)                      # [C,R,W]
        candidates = region_means(weights, objects) + where
        pointers = self.pointers(visual, weights, fused, where)
        tokens = self.visual_tokens(visual, fused)                # [C,V,W]
        words = self.embed_questions(questions, pointers)         # [C,Q,L,W]
        before = [self._embed(self.prefix).expand(len(tokens), -1, -1)]
        if self.focal is not None and self.shape.inputs == "tokens":
            focal = visual.focal[:, None, None].to(self.newline.dtype)
            before.append(self.focal(focal) * self.scale)
        first = sum(part.shape[1] for part in before)
        layer, hidden = self._run_decoder(torch.cat([*before, tokens], 1), words)
        gate = None if gate is None else gate.squeeze(1).unflatten(0, clips)
        return TeacherOutput(hidden, self._ground_logits(hidden, questions, candidates), gate,
                             self._numbers(hidden, questions), self._choices(hidden, questions),
                             fused, None if layer is None else layer[:, first:])

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm.get_output_embeddings()(hidden)

    def answer_logits(self, output: TeacherOutput, questions: QuestionBatch) -> Tensor:
        """Logits [C,Q,A,vocabulary] of each answer token."""
        length, width = output.hidden.shape[2:]
        offsets = torch.arange(questions.labels.shape[2], device=questions.labels.device)
        at = questions.answer_start[..., None] + offsets          # [C,Q,A]
        at = at.clamp_max(length - 1)[..., None].expand(-1, -1, -1, width)
        return self.logits(output.hidden.gather(2, at))

    def geometry_loss(self, output: TeacherOutput, visual: VisualInputs) -> Tensor | float:
        """The weighted losses of DepthRayHead and LayerLosses, those that are on."""
        loss: Tensor | float = 0.0
        if self.depth_ray is not None:
            loss = self.shape.depth_ray * self.depth_ray.loss(output.fused, visual.camera)
        if self.layer_losses is not None and output.layer is not None:
            t, g = visual.semantic.shape[1], self.shape.grid
            # no newlines; of two streams in a sequence, the first
            states = output.layer.unflatten(1, (t, -1, g + 1))[:, :, :g, :g]
            points, camera = (self.cells(p, g) for p in (visual.points, visual.camera))
            loss = loss + self.shape.layer_losses * self.layer_losses(states, points, camera)
        return loss

    def answer_state(self, hidden: Tensor, questions: QuestionBatch) -> Tensor:
        """The state that the answer starts from, before standardisation, [C,Q,W]."""
        at = questions.answer_start[..., None, None].expand(-1, -1, 1, hidden.shape[-1])
        return hidden.gather(2, at).squeeze(2)

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
        semantic = self._standard("semantic", visual.semantic.flatten(0, 1))
        if visual.generative is None or self.shape.fusion == "semantic_only":
            return semantic, None
        return semantic, self._standard("generative", visual.generative.flatten(0, 1))

    def _standard(self, name: str, x: Tensor) -> Tensor:
        mean, std = (self.get_buffer(f"{name}_{part}") for part in ("mean", "std"))
        return ((x.float() - mean) / std).to(self.newline.dtype)

    def _standard_state(self, name: str, states: Tensor, valid: Tensor | None = None) -> Tensor:
        """States [C,Q,W] by mean and deviation over the valid ones [C,Q]: in training the batch's,
        as they move far in a few steps; else running averages, which the first batch sets."""
        mean, std = (self.get_buffer(f"{name}_{part}") for part in ("mean", "std"))
        if not self.training or states.shape[:2].numel() < 2:
            return self._standard(name, states)
        share = states.new_ones(states.shape[:2], dtype=torch.float) if valid is None else valid
        total = share.sum()
        share = (share / total.clamp_min(1))[..., None]           # [C,Q,1]
        batch_mean = (states.float() * share).sum((0, 1))
        apart = states.float() - batch_mean
        batch_std = (apart.square() * share).sum((0, 1)).clamp_min(1e-8).sqrt()
        with torch.no_grad():
            step = ((std == 1).all().float().clamp_min(MOMENTUM) * (total > 1)).to(std.dtype)
            mean.lerp_(batch_mean.to(mean.dtype), step)
            std.lerp_(batch_std.to(std.dtype), step)
        return (apart / batch_std).to(self.newline.dtype)

    def visual_tokens(self, visual: VisualInputs, fused: Tensor) -> Tensor:
        """fused [C,T,W,h,14] -> [C,T*rows*(grid+1),W]: on the grid, with positions and newlines."""
        c, t, w, h, _ = fused.shape
        if self.shape.inputs != "tokens":
            return fused.new_zeros(c, 0, w)
        g = self.shape.grid
        small = F.adaptive_avg_pool2d(fused.flatten(0, 1), (g * h // GRID, g))  # [C*T,W,rows,g]
        position = self._positions(visual, g, w).repeat(1, 1, h // GRID, 1, 1)  # [C,T,rows,g,W]
        rows = (small.permute(0, 2, 3, 1).unflatten(0, (c, t)) + position) * self.scale
        ends = self.newline.to(rows.dtype).expand(*rows.shape[:3], 1, -1)
        return torch.cat([rows, ends], 3).flatten(1, 3)

    def embed_questions(self, questions: QuestionBatch, regions: Tensor) -> Tensor:
        """[C,Q,L,W]; to each <coord> are added its `pointers` [C,R,k,W], and what it is with the
        pointer before it: without that, two have to meet in attention, which takes thousands of
        steps."""
        words = self._embed(questions.ids)
        if not questions.coords.shape[2]:
            return words
        clip = torch.arange(len(regions), device=regions.device)[:, None, None]
        parts = regions[clip, questions.coords.clamp_min(0)]                    # [C,Q,P,k,W]
        pointers = parts.sum(3)
        if self.order is not None and self.pair is not None:
            previous = F.pad(parts, (0, 0, 0, 0, 1, 0))[:, :, :-1]
            numbered = torch.arange(pointers.shape[2], device=regions.device).clamp_max(ORDERS - 1)
            pair = self.pair(torch.cat([parts, previous], 3).flatten(3)).flatten(1, 2)
            pair = self._standard_state("pair", pair, questions.coords.flatten(1, 2) >= 0)
            pointers = pointers + pair.view_as(pointers) + self.order[numbered]
        is_coord = questions.ids == self.vocab_size + SPECIALS.index(POINTER)   # [C,Q,L]
        nth = (is_coord.cumsum(2) - 1).clamp(0, pointers.shape[2] - 1)
        is_coord = is_coord & (questions.coords.gather(2, nth) >= 0)
        at = nth[..., None].expand(-1, -1, -1, pointers.shape[-1])
        pointed = (pointers * self.scale).to(words.dtype).gather(2, at)         # [C,Q,L,W]
        return words + is_coord[..., None] * pointed

    def cells(self, points: Tensor, g: int) -> Tensor:
        """Points [C,T,14,14,3] averaged to a grid of g x g, [C,T,g,g,3] m."""
        small = F.adaptive_avg_pool2d(points.flatten(0, 1).permute(0, 3, 1, 2).float(), (g, g))
        return small.permute(0, 2, 3, 1).unflatten(0, points.shape[:2])

    def run_layers(self, embeds: Tensor, position_ids: Tensor,
                   mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """States [C,S,W] of input embeddings [C,S,W]: the last ones, and the middle layer's if
        LayerLosses are on."""
        decoder = self.lm.get_decoder()
        middle: list[Tensor] = []
        handles = []
        if self.layer_losses is not None and self.training:
            layer = decoder.layers[len(decoder.layers) // 2]  # a hook sees compiled layers too
            handles = [layer.register_forward_pre_hook(lambda _, args: middle.append(args[0]))]
        try:
            output = decoder(inputs_embeds=embeds, position_ids=position_ids, attention_mask=mask,
                             use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return output.last_hidden_state, middle[0] if middle else None

    def places(self, visual: VisualInputs, weights: Tensor) -> Tensor:
        """[C,R,W]: each region's place and area, and with depth_pose its box's centre or its
        tokens' mean position; weights: `region_weights`."""
        width = self.newline.shape[0]
        out = self.newline.new_zeros(*visual.inside.shape[:2], width)
        if self.place is not None:
            place = place_and_area(visual.inside, visual.semantic.shape[1])
            out = out + self.place(place.to(self.newline.dtype))
        if self.shape.position == "depth_pose":
            positions = self._positions(visual, GRID, width).flatten(1, 3)
            centre = sine_position(visual.boxes[..., :3], width)
            cells = weights @ positions
            out = out + torch.where(visual.boxes[..., 3:4] > 0, centre, cells)
        return out

    def pointers(self, visual: VisualInputs, weights: Tensor, fused: Tensor,
                 where: Tensor) -> Tensor:
        """[C,R,1 or 2,W]: where the regions of <coord>s are and, with visual tokens, what they look
        like; each standardised over regions, so that neither drowns the other, and what all regions
        share drowns neither. Relations of pointers then take far fewer steps."""
        parts = {"where": where}
        if self.shape.inputs == "tokens":
            parts["look"] = region_means(weights, fused)
        if self.shape.pointers:
            shown = visual.inside.sum(-1) > 0                     # [C,R]: not padding
            parts = {k: self._standard_state(k, part, shown) for k, part in parts.items()}
        return torch.stack([*parts.values()], 2)

    def _positions(self, visual: VisualInputs, g: int, width: int) -> Tensor:
        """[C,T,g,g,W] float32."""
        c, t = visual.semantic.shape[:2]
        if self.shape.position == "pose_free":
            code = video_position(t, g, width, visual.semantic.device)
            return code.expand(c, -1, -1, -1, -1)
        return sine_position(self.cells(visual.points, g), width)

    def _embed(self, ids: Tensor) -> Tensor:
        in_vocabulary = ids < self.vocab_size
        words = self.lm.get_input_embeddings()(ids.where(in_vocabulary, 0))
        # a product: the gradient of a look-up adds all tokens to one row, one after another
        special_ids = torch.arange(len(SPECIALS), device=ids.device) + self.vocab_size
        one_hot = (ids[..., None] == special_ids).to(words.dtype)
        return words * in_vocabulary[..., None] + one_hot @ self.specials.to(words.dtype)

    def _masked(self, semantic: Tensor) -> Tensor:
        """In training, half of the frames [C*T,D,14,14] without `masking` of their tokens
        (GeoSR, arXiv 2603.26639)."""
        if not self.training or not self.shape.masking:
            return semantic
        hidden = torch.rand_like(semantic[:, :1]) < self.shape.masking
        half = torch.rand_like(semantic[:, :1, :1, :1]) < 0.5
        return semantic.masked_fill(hidden & half, 0)

    def _context(self, questions: QuestionBatch) -> Tensor:
        """Mean word embedding of each clip's questions [C,W]; as released for one a clip."""
        places = torch.arange(questions.ids.shape[2], device=questions.ids.device)
        mask = (places <= questions.answer_start[..., None]).to(self.newline.dtype)  # [C,Q,L]
        total = torch.einsum("cql,cqlw->cw", mask, self._embed(questions.ids).to(mask.dtype))
        return total / mask.sum((1, 2))[:, None]

    def _numbers(self, hidden: Tensor, questions: QuestionBatch) -> Tensor | None:
        if self.number_head is None or (self.training and not questions.numeric):
            return None
        state = self._standard_state("answer", self.answer_state(hidden, questions))
        return self.number_head(state).squeeze(-1)

    def _choices(self, hidden: Tensor, questions: QuestionBatch) -> Tensor | None:
        """Each option by the states at its last token and at the answer's start."""
        if self.choice_head is None or not questions.options.shape[2]:
            return None
        padding = questions.options < 0
        at = questions.options.where(~padding, questions.options[..., :1])          # [C,Q,O]
        states = hidden.gather(2, at[..., None].expand(-1, -1, -1, hidden.shape[-1]))
        answer = self.answer_state(hidden, questions)[:, :, None].expand_as(states)
        both = torch.cat([states, answer], -1).flatten(1, 2)                        # [C,Q*O,2W]
        logits = self.choice_head(self._standard_state("option", both)).view(at.shape)
        return logits.float().masked_fill(padding, -torch.inf)

    def _run_decoder(self, shared: Tensor, words: Tensor) -> tuple[Tensor | None, Tensor]:
        """The middle layer's states of shared [C,P,W] (or None), the last of words [C,Q,L,W]."""
        c, q, l, _ = words.shape
        p = shared.shape[1]
        x = torch.cat([shared.to(words.dtype), words.flatten(1, 2)], 1)  # [C,P+Q*L,W]
        # float32 inputs would keep every residual in float32
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        position = torch.cat([torch.arange(p, device=x.device),
                              p + torch.arange(l, device=x.device).repeat(q)]).expand(c, -1)
        mask = None  # of one question: causal
        if q > 1:
            if (attention := self.lm.config._attn_implementation) != "sdpa":
                raise ValueError(f"language model: attention is {attention}, expected sdpa (others "
                                 "do not take a boolean mask): lm.set_attn_implementation('sdpa')")
            mask = question_block_mask(p, q, l, x.device).expand(c, 1, -1, -1)
        hidden, middle = self.run_layers(x, position, mask)
        return None if middle is None else middle[:, :p], hidden[:, p:].unflatten(1, (q, l))

    def _ground_logits(self, hidden: Tensor, questions: QuestionBatch,
                       objects: Tensor) -> Tensor | None:
        if not questions.candidates.shape[2]:
            return None
        query = self.grounding_query(hidden, questions)
        if self.shape.query == "words":
            # else the head stays at chance long: few channels hold most of the energy
            query = self._standard_state("query", query)
        clip = torch.arange(len(objects), device=objects.device)[:, None, None]
        candidates = objects[clip, questions.candidates.clamp_min(0)]  # [C,Q,K,W]
        return self.ground(query.to(hidden.dtype), candidates.to(hidden.dtype))


def region_means(weights: Tensor, tokens: Tensor) -> Tensor:
    """[C,R,W]: the mean of each region's tokens [C,T,W,h,14]; weights [C,R,T*196]."""
    parts = tokens.split(GRID, 3)  # two of a fusion that concatenates sequences
    flat = sum(p.permute(0, 1, 3, 4, 2).flatten(1, 3) for p in parts) / len(parts)
    return weights.to(flat.dtype) @ flat


def question_block_mask(shared: int, questions: int, length: int, device: torch.device) -> Tensor:
    """[1,1,S,S] bool, S = shared + questions * length: causal, and questions do not see others."""
    owner = (torch.arange(-shared, questions * length, device=device) // length).clamp_min(-1)
    visible = (owner[None] == owner[:, None]) | (owner[None] == -1)
    return visible.tril()[None, None]


def _mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, outputs))


def _rms(embedding: Tensor) -> Tensor:
    if embedding.device.type == "meta":
        return torch.ones(())
    return embedding.detach().float().square().mean().sqrt()
