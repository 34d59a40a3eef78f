"""The full teacher's forward pass: embeddings, attention mask, objects and prompts."""
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from scenes.questions.question import POINTER
from teacher.fusion import FUSIONS
from teacher.language import model as language_model
from teacher.language.encode import PromptEncoder, balance_rooms, collate
from teacher.language.grounding import region_weights
from teacher.language.lm import load_lm, tune
from teacher.language.model import (
    GROUND,
    IGNORED,
    LanguageShape,
    LanguageTeacher,
    QuestionBatch,
    VisualInputs,
    question_block_mask,
    region_means,
)
from tests.language_fakes import sample_room, save_tiny_lm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_lm(tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="module")
def parts(folder):
    lm, tokenizer = load_lm(str(folder))
    return lm.eval(), PromptEncoder(tokenizer, lm.get_input_embeddings().weight.shape[0])


def teacher(parts, **shape) -> LanguageTeacher:
    torch.manual_seed(0)
    return LanguageTeacher(parts[0], LanguageShape(5, 6, **{"grid": 2, **shape}),
                           parts[1].prefix).eval()


def visual_inputs(rooms, frames: int = 2) -> VisualInputs:
    draw = torch.Generator().manual_seed(0)
    return VisualInputs(
        torch.randn(len(rooms), frames, 5, 14, 14, generator=draw),
        torch.randn(len(rooms), frames, 6, 14, 14, generator=draw),
        *(torch.from_numpy(np.stack([getattr(r, n) for r in rooms])) for n in ("points", "camera")),
        torch.tensor([r.focal for r in rooms]),
        *(torch.from_numpy(np.stack([getattr(r, n) for r in rooms])) for n in ("boxes", "inside")))


ROOMS = [sample_room("train/00000_0"), sample_room("train/00001_0")]


def every_question(encoder) -> QuestionBatch:
    return collate([encoder.encode_room(room) for room in ROOMS], encoder.end)


def test_many_questions_at_once_are_the_same_as_one_by_one(parts):
    model, batch = teacher(parts), every_question(parts[1])
    with torch.no_grad():
        together = model(visual_inputs(ROOMS), batch)
        for q in range(batch.ids.shape[1]):
            one = QuestionBatch(*(x[:, q:q + 1] for x in vars(batch).values()))
            alone = model(visual_inputs(ROOMS), one)
            for c in range(2):
                n = int(batch.length[c, q])
                torch.testing.assert_close(together.hidden[c, q, :n], alone.hidden[c, 0, :n],
                                           atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(together.ground[:, q], alone.ground[:, 0], atol=1e-4,
                                       rtol=1e-4)
            torch.testing.assert_close(together.number[:, q], alone.number[:, 0], atol=1e-4,
                                       rtol=1e-4)


def test_it_is_the_plain_language_model_over_the_same_embeddings(parts):
    """Prefix, visual tokens, question through transformers' own forward: the logits of the answer
    agree."""
    model, batch = teacher(parts), every_question(parts[1])
    one = QuestionBatch(*(x[:1, :1] for x in vars(batch).values()))
    view = VisualInputs(*(x[:1] for x in vars(visual_inputs(ROOMS)).values()))
    with torch.no_grad():
        fused, _ = model.fusion(*model.standardise(view))
        visual = model.visual_tokens(view, fused.unflatten(0, (1, 2)))
        words = parts[0].get_input_embeddings()
        n = int(one.length)
        text = words(one.ids[0, 0, :n])[None]
        focal = model.focal(view.focal[:, None, None]) * model.scale
        embeds = torch.cat([words(torch.tensor([parts[1].prefix])), focal, visual, text], 1)
        expected = parts[0](inputs_embeds=embeds).logits[0, -n:]
        got = model.logits(model(view, one).hidden[0, 0, :n])
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_attention_that_does_not_take_a_boolean_mask_is_refused(folder):
    """Eager attention adds the mask to the scores, which hides nothing."""
    lm, tokenizer = load_lm(str(folder))
    encoder = PromptEncoder(tokenizer, lm.vocab_size)
    model, batch, view = teacher((lm, encoder)), every_question(encoder), visual_inputs(ROOMS)
    one = QuestionBatch(*(x[:, :1] for x in vars(batch).values()))
    with torch.no_grad():
        expected = model(view, one).hidden
        lm.set_attn_implementation("eager")
        torch.testing.assert_close(model(view, one).hidden, expected, atol=1e-5, rtol=1e-4)
        with pytest.raises(ValueError, match="attention is eager, expected sdpa"):
            model(view, batch)


def test_question_block_mask_by_its_definition():
    mask = question_block_mask(3, 2, 2, torch.device("cpu"))[0, 0]
    owner = [None] * 3 + [0, 0, 1, 1]
    for i in range(7):
        for j in range(7):
            assert mask[i, j] == (j <= i and (j < 3 or owner[i] == owner[j])), (i, j)


def test_rows_end_with_the_newline_token(parts):
    model = teacher(parts)
    view = visual_inputs(ROOMS)
    fused, _ = model.fusion(*model.standardise(view))
    tokens = model.visual_tokens(view, fused.unflatten(0, (2, 2)))
    assert tokens.shape == (2, 2 * 2 * 3, 24)  # frames x rows x (tokens + newline)
    torch.testing.assert_close(tokens[:, 2::3], model.newline.expand(2, 4, -1))
    assert not torch.allclose(tokens[0, 1], model.newline)


@pytest.mark.parametrize("name", FUSIONS)
def test_every_fusion_reaches_the_answer(parts, name):
    model, batch = teacher(parts, fusion=name), every_question(parts[1])
    view = visual_inputs(ROOMS)
    output = model(view, batch)
    changed = model(replace(view, generative=view.generative + 1), batch)
    moved = not torch.allclose(output.hidden, changed.hidden, atol=1e-6)
    assert moved == (name != "semantic_only")
    assert (output.gate is not None) == name.endswith(("gate", "gated"))


def test_depth_positions_move_the_answer_and_pose_free_ignores_them(parts):
    view, batch = visual_inputs(ROOMS), every_question(parts[1])
    moved = replace(view, points=view.points + 1.0, boxes=view.boxes + 1.0)
    for mode, differs in (("depth_pose", True), ("pose_free", False)):
        model = teacher(parts, position=mode)
        same = torch.allclose(model(view, batch).hidden, model(moved, batch).hidden, atol=1e-6)
        assert same != differs, mode


def test_candidates_are_semantic_and_pointers_fused_tokens_of_their_region(parts):
    model, batch = teacher(parts), every_question(parts[1])
    view = visual_inputs(ROOMS)

    def moved(stream):
        """Of each region [C,R]: candidates and pointers that a change of that stream moves."""
        other = getattr(view, stream).clone()
        other[0, 0, :, :7, :7] += 3  # the first box's quarter of the first frame
        embeddings = []
        for inputs in (view, replace(view, **{stream: other})):
            sem, gen = model.standardise(inputs)
            fused = model.fusion(sem, gen)[0].unflatten(0, (2, 2))
            candidates = model.object_projection(sem).unflatten(0, (2, 2))
            weights = region_weights(inputs.inside)
            where = model.places(inputs, weights)
            embeddings.append([region_means(weights, candidates) + where,
                               model.pointers(inputs, weights, fused, where)])
        moves = [(a - b).abs().flatten(2).amax(-1) for a, b in zip(*embeddings, strict=True)]
        return [(move > 1e-6).tolist() for move in moves]

    first, none = [[True] + [False] * 4, [False] * 5], [[False] * 5] * 2
    assert moved("semantic") == [first, first] and moved("generative") == [none, first]
    assert model(view, batch).ground.shape == (2, 8, 5)


def test_pointers_are_standardised_over_the_regions_that_are_shown(parts):
    """What they look like and where they are, each alone; later by the averages of training."""
    model = teacher(parts).train()
    view = visual_inputs(ROOMS)
    padded = replace(view, inside=torch.cat([view.inside, 0 * view.inside[:, :1]], 1),
                     boxes=torch.cat([view.boxes, 0 * view.boxes[:, :1]], 1))
    fused = model.fusion(*model.standardise(view))[0].unflatten(0, (2, 2))
    shown = (view.inside.sum(-1) > 0).flatten()
    expected = []
    weights, more = region_weights(view.inside), region_weights(padded.inside)
    for x in (model.places(view, weights), region_means(weights, fused)):
        std, mean = torch.std_mean(x.flatten(0, 1)[shown], 0, correction=0)
        expected.append((x - mean) / std.clamp_min(1e-4))
    expected = torch.stack(expected, 2)
    found = model.pointers(padded, more, fused, model.places(padded, more))
    torch.testing.assert_close(found[:, :-1], expected)
    where = model.eval().places(view, weights)
    later = model.pointers(view, weights, fused, where)  # by the first batch's averages
    torch.testing.assert_close(later, expected)


def test_a_step_weighs_the_tokens_of_regions_once(parts, monkeypatch):
    calls = []
    monkeypatch.setattr(language_model, "region_weights",
                        lambda inside: calls.append(inside) or region_weights(inside))
    teacher(parts, position="depth_pose")(visual_inputs(ROOMS), every_question(parts[1]))
    assert len(calls) == 1


def test_no_true_geometry_reaches_a_pose_free_reader(parts):
    """Depth, poses and boxes may be anything: the outputs stay the same."""
    model, batch = teacher(parts, depth_ray=1.0, layer_losses=1.0), every_question(parts[1])
    view = visual_inputs(ROOMS)
    other = replace(view, points=view.points * 3, camera=view.camera + 1, boxes=view.boxes * 2)
    a, b = model(view, batch), model(other, batch)
    for name in ("hidden", "ground", "number", "fused"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=0)
    assert not torch.equal(a.hidden, model(replace(view, focal=view.focal + 1), batch).hidden)


def test_each_pointer_carries_its_own_region_in_the_order_of_the_text(parts):
    encoder = parts[1]
    two = replace(ROOMS[0].questions[1], task="vsi:object_abs_distance", text="the bed and the tv",
                  mentions=(("bed", 1, 0), ("tv", 2, 0)))
    assert "the bed <coord> and the tv <coord>" in two.pointed_prompt
    room = replace(ROOMS[0], questions=[two], candidates=[[]], mentions=[[4, 2]])
    batch = collate([encoder.encode_room(room)], encoder.end)
    assert batch.coords.tolist() == [[[4, 2]]] and batch.number.exp().tolist() == [[3.0]]
    model, regions = teacher(parts).eval(), torch.randn(1, 5, 2, 24)
    model.pair_mean.fill_(0.5)
    model.pair_std.fill_(2.0)
    words = model.embed_questions(batch, regions)[0, 0]
    spots = (batch.ids[0, 0] == encoder.encode(POINTER)[0]).nonzero()[:, 0].tolist()
    before = torch.zeros(48)
    for k, (spot, region) in enumerate(zip(spots, (4, 2), strict=True)):
        own = regions[0, region].flatten()
        pair = (model.pair(torch.cat([own, before])) - 0.5) / 2
        pointer = regions[0, region].sum(0) + model.order[k] + pair
        torch.testing.assert_close(words[spot], model.specials[1] + pointer * model.scale)
        before = own
    plain = PromptEncoder(encoder.tokenizer, encoder.vocab_size, pointers=False)
    assert collate([plain.encode_room(room)], plain.end).coords.shape[2] == 0
    with pytest.raises(ValueError, match="does not mention the sofa"):
        replace(two, mentions=(("bed", 1, 0), ("sofa", 2, 0))).pointed_prompt  # noqa: B018


def test_a_caption_points_at_its_box(parts):
    batch = every_question(parts[1])
    caption = [q.task for q in ROOMS[0].questions].index("caption")
    assert batch.coords[0, caption].tolist() == list(ROOMS[0].questions[caption].targets)


def test_controls_without_visual_tokens_have_the_same_candidates(parts):
    batch, view = every_question(parts[1]), visual_inputs(ROOMS)
    other = replace(view, semantic=view.semantic.flip(0), generative=view.generative + 1)
    for inputs in ("place", "text"):
        model = teacher(parts, inputs=inputs)
        a, b = model(view, batch), model(other, batch)
        torch.testing.assert_close(a.hidden, b.hidden)
        assert not torch.allclose(a.ground, b.ground)  # candidates keep their semantic features
    place = teacher(parts, inputs="place")
    turned = replace(view, inside=view.inside.flip(2))
    assert not torch.allclose(place(view, batch).hidden, place(turned, batch).hidden)


def test_masking_zeroes_tokens_in_half_of_the_training_frames_only(parts):
    model = teacher(parts, masking=0.8)
    ones = torch.ones(400, 5, 14, 14)
    assert model._masked(ones) is ones
    masked = model.train()._masked(ones)
    model.eval()
    share = (masked == 0).float().mean((1, 2, 3))
    assert bool(((masked == 0).all(1) == (masked == 0).any(1)).all())  # whole tokens
    assert 0.4 < (share == 0).float().mean() < 0.6
    assert share[share > 0].mean() == pytest.approx(0.8, abs=0.02)


def test_numbers_are_read_at_the_start_of_the_answer(parts):
    """The same number whatever the answer's tokens are, and NaN where there is no number."""
    model, view = teacher(parts), visual_inputs(ROOMS)
    batch = every_question(parts[1])
    changed = replace(batch, ids=batch.ids.clone())
    after = torch.arange(batch.ids.shape[2]) > batch.answer_start[..., None]
    changed.ids[after] = 5
    torch.testing.assert_close(model(view, batch).number, model(view, changed).number)
    numeric = [q.number is not None for q in ROOMS[0].questions]
    assert (~batch.number.isnan())[0].tolist() == numeric


def test_labels_are_the_answers_at_their_positions(parts):
    encoder = parts[1]
    batch = every_question(encoder)
    for c, room in enumerate(ROOMS):
        for q, question in enumerate(room.questions):
            labels = batch.labels[c, q]
            ids = labels[labels != IGNORED].tolist()
            if question.number is not None:  # the numeric head's
                assert not ids and batch.number[c, q] == pytest.approx(np.log(question.number))
                continue
            if question.answer is None:
                assert not ids and batch.ids[c, q,
                                             batch.length[c, q] - 1] == encoder.encode(GROUND)[0]
                continue
            assert encoder.decode(ids) == question.answer and ids[-1] == encoder.end
            # each token is predicted from the one before it
            assert batch.ids[c, q, batch.answer_start[c, q] + 1] == ids[0]
    free = collate([encoder.encode_room(room) for room in ROOMS], encoder.end, max_new_tokens=5)
    assert (free.labels == IGNORED).all() and int((free.ids.shape[2] - free.length).min()) >= 5


def test_specials_need_no_token_in_the_tokenizer(parts):
    encoder = parts[1]
    words = parts[0].get_input_embeddings().weight.shape[0]
    assert encoder.encode(f"at {POINTER} {GROUND}")[-1] == words and words + 1 in encoder.encode(
        f"at {POINTER}")
    assert encoder.encode("<groun>") != [words]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_official_layouts_load_and_lora_adapts_every_linear_layer(tmp_path, kind):
    lm, tokenizer = load_lm(str(save_tiny_lm(tmp_path / kind, kind)))
    before = sum(1 for n, m in lm.named_modules()
                 if isinstance(m, torch.nn.Linear) and "lm_head" not in n)
    tune(lm, "lora", rank=2)
    trained = [n for n, p in lm.named_parameters() if p.requires_grad]
    assert before == 14 and len(trained) == 2 * before and all("lora_" in n for n in trained)
    model = LanguageTeacher(lm, LanguageShape(5, 6, grid=2),
                            PromptEncoder(tokenizer, lm.vocab_size).prefix)
    batch = every_question(PromptEncoder(tokenizer, lm.vocab_size))
    model(visual_inputs(ROOMS), batch).hidden.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for n, p in lm.named_parameters()
               if "lora_B" in n)


def test_llava_video_gives_its_language_model(tmp_path):
    """Its folder: a Qwen2 with a vision tower and a projector under names of its own."""
    folder = save_tiny_lm(tmp_path, "qwen2")
    card = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(card | {
            "model_type": "llava_qwen", "mm_hidden_size": 8,
            "architectures": ["LlavaQwenForCausalLM"]
        }))
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"model.mm_projector.0.weight": torch.zeros(4, 8)},
              folder / "model.safetensors", metadata={"format": "pt"})
    lm, _ = load_lm(str(folder))
    assert type(lm).__name__ == "Qwen2ForCausalLM"
    torch.testing.assert_close(lm.get_input_embeddings().weight,
                               weights["model.embed_tokens.weight"])


def test_first_layers_alone_are_a_smaller_model(folder):
    lm, _ = load_lm(str(folder), layers=1)
    assert len(lm.get_decoder().layers) == 1
    with pytest.raises(ValueError, match="got 3 layers, expected 1 to 2"):
        load_lm(str(folder), layers=3)


def test_bad_models_and_tokenizers_are_one_clear_line(tmp_path, folder, parts):
    with pytest.raises(ValueError, match="no such language model; give smollm2-135m"):
        load_lm(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no causal language model"):
        load_lm(str(tmp_path))
    tokenizer = load_lm(str(save_tiny_lm(tmp_path / "endless", eos=False)))[1]
    with pytest.raises(ValueError, match="no end-of-text token"):
        PromptEncoder(tokenizer, 100)
    with pytest.raises(ValueError, match="do not belong together"):
        PromptEncoder(parts[1].tokenizer, 10)
    tokenizer = load_lm(str(save_tiny_lm(tmp_path / "plain", chat=False)))[1]
    assert PromptEncoder(tokenizer, 100).prefix == []
    weights = tmp_path / "plain" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ValueError, match="could be read"):
        load_lm(str(tmp_path / "plain"))


def test_balanced_rooms_pair_each_question_with_its_boxes(monkeypatch):
    rooms = [sample_room(f"train/{i:05d}_0", number=i % 5) for i in range(3)]
    count = "vsi:object_counting"
    drop = rooms[1].questions + [q for q in rooms[0].questions if q.task == count]
    monkeypatch.setattr("teacher.language.encode.balanced",
                        lambda every, seed: [q for q in every if q not in drop])
    retained = balance_rooms(rooms, 0)
    assert [room.id for room in retained] == [rooms[0].id, rooms[2].id]  # without empty rooms
    assert len(retained[0].questions) == len(rooms[0].questions) - 1 == len(retained[0].candidates)
    for room in retained:
        for question, boxes in zip(room.questions, room.candidates, strict=True):
            np.testing.assert_array_equal(room.boxes[boxes], question.boxes.reshape(-1, 7))
        assert [len(m) for m in room.mentions] == [len(q.mentions) for q in room.questions]


def test_the_most_frequent_count_is_no_good_guess_once_balanced():
    rooms = [sample_room(f"train/{i:05d}_0", number=2 if i % 10 else 3) for i in range(40)]
    counted = [question.number for room in balance_rooms(rooms, 0) for question in room.questions
               if question.task == "vsi:object_counting"]
    assert counted.count(2.0) == counted.count(3.0) == 4
