"""Training the full teacher: it learns, resumes exactly, and trains the weights it should."""
import json
import signal
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from records.interrupts import Interrupted, handled
from scenes.questions.question import CHOICE_ENDING
from scenes.questions.scoring import values
from teacher.language import finetune, readouts
from teacher.language.config import RECIPES, FinetuneConfig
from teacher.language.dataset import (
    CHOICE,
    FAMILIES,
    QuestionDataset,
    family,
    load_rooms,
    save_rooms,
)
from teacher.language.finetune import (
    CHECKPOINT,
    FlatInputsObjective,
    Objective,
    fit,
    flatten_batch,
    set_feature_statistics,
    validation_loss,
)
from teacher.language.generate import predict
from teacher.language.geometry_losses import LayerLosses, ridge_r2
from teacher.language.model import SAVED_NAMES, LanguageShape
from teacher.language.readouts import readout_scores
from teacher.language.train import true_geometry
from teacher.language.weights import build, load_trainable, trainable_state_dict
from tests.language_fakes import sample_room, save_tiny_lm

CPU = torch.device("cpu")
ROOMS = [sample_room(f"train/{i:05d}_0", number=(2, 7)[i % 2]) for i in range(6)]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = save_tiny_lm(tmp_path_factory.mktemp("lm"))
    return FinetuneConfig(lm=str(folder), steps=6, clips=3, questions=4, lr=3e-3, lr_new=3e-3,
                      save_every=2, validate_every=2)


def features(rooms, numbers: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Semantic features in which box i's quarter is lit in channel i (and the count is a channel);
    random geometry."""
    semantic = torch.zeros(len(rooms), 2, 5, 14, 14)
    for n, room in enumerate(rooms):
        for i in range(4):
            semantic[n, :, i, 7 * (i // 2):7 * (i // 2) + 7, 7 * (i % 2):7 * (i % 2) + 7] = 1
        semantic[n, :, 4] = room.questions[0].number
    draw = torch.Generator().manual_seed(0)
    return semantic.half(), torch.randn(len(rooms), 2, 6, 14, 14, generator=draw).half()


def start(config, rooms=ROOMS, **shape):
    model, encoder = build(config, LanguageShape(5, 6, **{"grid": 2, **shape}), CPU)
    dataset = QuestionDataset(rooms, *features(rooms), encoder, CPU)
    set_feature_statistics(model, dataset)
    return model, dataset


# at the head's rate the states of a random language model move by hundreds of deviations in a few
# steps: the statistics that they are standardised by have to follow
@pytest.mark.parametrize(("name", "metric", "lr", "numbers"), [
    ("ground", "acc@0.5", 1e-3, "head"), ("vsi_number", "mra", 6e-3, "text"),
    ("vsi_number", "mra", 3e-3, "head")])
def test_it_learns_to_ground_and_to_count(config, name, metric, lr, numbers):
    config = replace(config, steps=90, clips=6, lr=lr, lr_new=lr, validate_every=200)
    model, dataset = start(config, grid=2, numbers=numbers)
    dataset.families, dataset.shares = [name], np.ones(1)
    fit(model, dataset, config, quiet=True)
    scores = []
    for prediction in predict(model, dataset, name):
        question = ROOMS[prediction.room].questions[prediction.question]
        scores.append(values(question, prediction.output(question))[metric])
    assert len(scores) == len(dataset.by_family[name]) * (2 if name == "vsi_number" else 1)
    assert np.mean(scores) > 0.8, scores  # chance is a quarter of the boxes


def states(model, batch, family: str) -> torch.Tensor:
    """What the family's head reads, before standardisation, [C*Q,W]."""
    hidden = model(batch.visual, batch.questions).hidden
    read = model.grounding_query if family == "ground" else model.answer_state
    return read(hidden, batch.questions).flatten(0, 1).detach()


@pytest.mark.parametrize(("family", "name"), [("ground", "query"), ("vsi_number", "answer")])
def test_states_are_standardised_over_a_training_batch_and_then_by_running_averages(
        config, family, name):
    """The first batch sets the averages, each other one moves them by a tenth."""
    model, dataset = start(config)
    seen = []
    head = model.ground.query_proj if family == "ground" else model.number_head
    head.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1).detach()))
    batch = next(dataset.eval_batches(family, 3, 2))
    raw = states(model.train(), batch, family)
    std, mean = torch.std_mean(raw, 0, correction=0)
    with torch.no_grad():  # as a step that moves every state far
        model.lm.get_decoder().norm.weight.mul_(-3)
    for _ in range(2):
        raw = states(model, batch, family)
        batch_std, batch_mean = torch.std_mean(raw, 0, correction=0)
        expected = (raw - batch_mean) / batch_std.clamp_min(1e-4)
        torch.testing.assert_close(seen[-1], expected, rtol=1e-3, atol=1e-4)
        mean, std = 0.9 * mean + 0.1 * batch_mean, 0.9 * std + 0.1 * batch_std
    torch.testing.assert_close(model.get_buffer(f"{name}_mean"), mean)
    torch.testing.assert_close(model.get_buffer(f"{name}_std"), std)
    raw = states(model.eval(), batch, family)
    torch.testing.assert_close(seen[-1], (raw - mean) / std)
    torch.testing.assert_close(model.get_buffer(f"{name}_mean"), mean)


def test_only_a_familys_own_batches_move_its_statistics(config):
    model, dataset = start(config)
    prefixes = {"ground": "query", "multi_ground": "query", "vsi_number": "answer"}
    for name in dataset.families:
        before = {n: b.clone() for n, b in model.named_buffers()}
        batch = next(dataset.eval_batches(name, 3, 2))
        model.train()(batch.visual, batch.questions)
        moved = {n for n, b in model.named_buffers() if not torch.equal(b, before[n])}
        moved = {n for n in moved if n.split("_")[0] not in ("look", "where", "pair")}  # pointers
        expected = {f"{prefixes[name]}_{part}" for part in ("mean", "std") if name in prefixes}
        assert moved == expected, name
    batch = next(dataset.eval_batches("ground", 1, 1))  # one question has no deviation
    model(batch.visual, batch.questions).ground.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    paper, dataset = start(config, query="ground")
    before = states(paper.train(), batch, "ground")
    paper.ground.query_proj.register_forward_pre_hook(
        lambda _, args: torch.testing.assert_close(args[0].flatten(0, 1), before))
    paper(batch.visual, batch.questions)


@pytest.mark.parametrize("stream", [True, False])
def test_fixed_shape_batches_have_one_shape_and_the_same_loss(config, stream):
    """As a CUDA graph of the step needs; the graph itself needs a GPU."""
    model, dataset = start(config, **({} if stream else {"fusion": "semantic_only"}))
    if not stream:
        dataset.visual = replace(dataset.visual, generative=None)
    objective = Objective(model.eval())
    for name in dataset.families:
        one = copy(dataset)
        one.families, one.shares = [name], np.ones(1)
        batches = [one.sample_batch(0, step, 2, 2, fixed_shape=True) for step in range(6)]
        shapes = [[x.shape for x in flatten_batch(batch).values()] for batch in batches]
        assert all(one == shapes[0] for one in shapes)
        flat = FlatInputsObjective(objective, [*flatten_batch(batches[0])])
        for step, batch in enumerate(batches):
            expected = objective(one.sample_batch(0, step, 2, 2))
            torch.testing.assert_close(flat(*flatten_batch(batch).values()), expected, atol=1e-5,
                                       rtol=1e-5)


@pytest.mark.parametrize("shape", [{}, {"layer_losses": 1.0}])
def test_compiled_layers_give_the_same_loss_and_are_used_in_that_forward_only(config, monkeypatch,
                                                                              shape):
    """With a CPU backend: every layer compiles without a graph break; equal loss and gradients."""
    compiled = []
    monkeypatch.setattr(
        torch, "compile", lambda f, fullgraph, dynamic, make=torch.compile: compiled.append(
            make(f, fullgraph=fullgraph, dynamic=dynamic, backend="aot_eager")) or compiled[-1])
    model, dataset = start(config, **shape)
    batch = flatten_batch(dataset.sample_batch(0, 0, 2, 2, fixed_shape=True))
    found = []
    layers = model.lm.get_decoder().layers
    for with_compile in (False, True):
        model.zero_grad()
        loss = FlatInputsObjective(Objective(model), [*batch], with_compile)(*batch.values())
        loss.backward()
        found.append(
            [loss.detach(), *(p.grad for p in model.lm.parameters() if p.grad is not None)])
    assert len(compiled) == len(layers) == 2 and model.lm.get_decoder().layers is layers
    assert not any("forward" in vars(layer) for layer in layers)
    for plain, other in zip(*found, strict=True):
        torch.testing.assert_close(other, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("shape", "names"), [
    ({}, {"known.weight", "ground.ask.0.weight", "ground.thing.3.bias", "number_head.2.bias",
          "query_mean", "query_std", "answer_mean", "answer_std"}),
    ({"depth_ray": 1.0, "layer_losses": 1.0}, {"depth_ray.head.weight", "layer_losses.norm.bias"})])
def test_weights_are_saved_under_the_names_of_published_teachers(config, shape, names):
    model, _ = start(config, **shape)
    state = trainable_state_dict(model)
    assert names <= set(state) and not any(n.startswith(tuple(SAVED_NAMES)) for n in state)
    other, _ = start(replace(config, seed=1), **shape)
    load_trainable(other, state)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=0, atol=0)


def test_a_killed_run_says_where_it_resumes_to_the_same_weights(config, tmp_path, capsys):
    complete, dataset = start(config)
    fit(complete, dataset, config, tmp_path / "complete", quiet=True)
    first, dataset = start(config)
    # killed after the checkpoint of step 4, while step 6 is being recorded
    with pytest.raises(KeyboardInterrupt):
        fit(first, dataset, config, tmp_path / "killed", lambda m: stop_at(tmp_path / "killed", 4),
            quiet=True)
    again, dataset = start(config)
    curve = fit(again, dataset, config, tmp_path / "killed", quiet=True)
    assert [row["step"] for row in curve] == [2, 4, 6]
    assert capsys.readouterr().out == f"resumed after step 4: {tmp_path}/killed/{CHECKPOINT}\n"
    for name, value in trainable_state_dict(complete).items():
        torch.testing.assert_close(trainable_state_dict(again)[name], value, rtol=0, atol=0)


def test_a_terminated_training_saves_its_step_and_the_losses_since_the_last_row(
        config, tmp_path, monkeypatch):
    config = replace(config, save_every=100)
    complete, dataset = start(config)
    expected = fit(complete, dataset, config, tmp_path / "complete", quiet=True)
    true_step, steps = finetune.clip_and_step, []

    def terminated(*args):
        steps.append(1)
        if len(steps) == 3:  # rows are of two steps
            signal.raise_signal(signal.SIGTERM)
        true_step(*args)

    monkeypatch.setattr(finetune, "clip_and_step", terminated)
    first, dataset = start(config)
    with pytest.raises(Interrupted), handled():
        fit(first, dataset, config, tmp_path / "killed", quiet=True)
    again, dataset = start(config)
    assert fit(again, dataset, config, tmp_path / "killed", quiet=True) == expected
    assert len(steps) == config.steps
    for name, value in trainable_state_dict(complete).items():
        assert torch.equal(trainable_state_dict(again)[name], value), name


def stop_at(folder, lines: int) -> dict[str, float]:
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    if rows and json.loads(rows[-1])["step"] >= lines:
        raise KeyboardInterrupt
    return {}


def test_another_configuration_does_not_resume(config, tmp_path):
    model, dataset = start(config)
    fit(model, dataset, replace(config, steps=2), tmp_path, quiet=True)
    assert (tmp_path / CHECKPOINT).is_file()
    other, dataset = start(config)
    rows = fit(other, dataset, replace(config, steps=2, lr=1e-4), tmp_path, quiet=True)
    assert [row["step"] for row in rows] == [2]  # trained anew, not found finished


@pytest.mark.parametrize("how", ["frozen", "lora", "full"])
def test_only_the_configured_weights_are_trained(config, how):
    torch.manual_seed(0)
    model, dataset = start(replace(config, tune=how, steps=2))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    fit(model, dataset, replace(config, tune=how, steps=2), quiet=True)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    old = {n for n in moved if n.startswith("lm.")}
    assert {"fusion.gate.weight", "newline"} <= moved
    assert {"frozen": not old, "lora": bool(old) and all("lora_" in n for n in old),
            "full": any("q_proj" in n for n in old)}[how], old


def test_a_batch_is_one_family_the_same_for_every_process(config):
    _, dataset = start(config)
    drawn = set()
    for step in range(40):
        batches = [dataset.sample_batch(1, step, 3, 2, rank) for rank in (0, 1)]
        names = [{family(ROOMS[i].questions[j]) for i, j in b.rows} for b in batches]
        assert names[0] == names[1] and len(names[0]) == 1
        drawn |= names[0]
        if step == 0:
            assert dataset.sample_batch(1, 0, 3, 2).rows == batches[0].rows  # by (seed, step) alone
    assert drawn == {n for n in FAMILIES if n != "qa"}
    ranks = [[dataset.sample_batch(1, s, 3, 2, r).rows for s in range(8)] for r in (0, 1)]
    assert ranks[0] != ranks[1]


def test_eval_batches_have_every_question_once(config):
    _, dataset = start(config)
    for name in dataset.families:
        rows = [row for batch in dataset.eval_batches(name, 4, 2) for row in batch.rows]
        every = [(i, j) for i, r in enumerate(ROOMS) for j, q in enumerate(r.questions)
                 if family(q) == name]
        assert sorted(rows) == every


def test_greedy_answers_are_what_plain_generation_gives(config):
    """One question through transformers' own generate(), with its cache."""
    model, dataset = start(config, numbers="text")
    prediction = predict(model, dataset, "vsi_number")[0]
    batch = next(dataset.eval_batches("vsi_number", 1, 1, 8))
    with torch.inference_mode():
        fused, _ = model.fusion(*model.standardise(batch.visual))
        visual = model.visual_tokens(batch.visual, fused.unflatten(0, (1, 2)))
        words = model.lm.get_input_embeddings()
        text = words(batch.questions.ids[0, :1, :int(batch.questions.length)])
        focal = model.focal(batch.visual.focal[:, None, None]) * model.scale
        embeds = torch.cat([words(model.prefix)[None], focal, visual, text], 1)
        ids = model.lm.generate(inputs_embeds=embeds, max_new_tokens=8, do_sample=False,
                                eos_token_id=0, pad_token_id=0)
    assert dataset.encoder.decode(ids[0].tolist()) == prediction.text


def test_an_options_score_is_read_where_the_option_ends(config):
    place = [family(q) for q in ROOMS[0].questions].index(CHOICE)
    letters = start(config, choices="letters")[1].encoder.encode_room(ROOMS[0])[place]
    model, dataset = start(config, choices="head")
    encoder = dataset.encoder
    question, encoded = ROOMS[0].questions[place], encoder.encode_room(ROOMS[0])[place]
    plain = question.prompt.removesuffix("\n" + CHOICE_ENDING)  # a head needs no instruction
    assert plain != question.prompt
    assert encoded.prompt == encoder.encode("\n" + plain + encoder._after)
    assert letters.prompt == encoder.encode("\n" + question.prompt + encoder._after)
    assert [encoder.decode(encoded.prompt[:end + 1])[-len(option):]
            for end, option in zip(encoded.options, question.options, strict=True)
            ] == [*question.options]
    assert question.options[encoded.right][0] == question.answer and not encoded.answer
    assert encoder.decode(letters.answer) == question.answer and not letters.options
    batch = next(dataset.eval_batches(CHOICE, 2, 1))
    batch.questions.options = torch.nn.functional.pad(batch.questions.options, (0, 1), value=-1)
    seen = []
    model.choice_head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        output = model.eval()(batch.visual, batch.questions)
    assert output.choice.shape == (2, 1, 3) and output.choice[..., 2].isneginf().all()
    assert output.choice[..., :2].isfinite().all() and output.ground is None
    hidden = output.hidden[0, 0]
    for i, end in enumerate(encoded.options):
        both = torch.cat([hidden[end], hidden[len(encoded.prompt) - 1]])
        torch.testing.assert_close(seen[0].unflatten(1, (1, 3))[0, 0, i], both)


def test_it_learns_to_choose(config):
    """The count in the semantic features says which option is right."""
    config = replace(config, steps=60, clips=6, lr=3e-3, lr_new=3e-3, validate_every=200)
    model, dataset = start(config, choices="head")
    dataset.families, dataset.shares = [CHOICE], np.ones(1)
    fit(model, dataset, config, quiet=True)
    found = predict(model, dataset, CHOICE)
    right = [ROOMS[p.room].questions[p.question].answer == p.text for p in found]
    assert len(right) == len(ROOMS) and np.mean(right) > 0.8


def test_a_teacher_saved_before_there_was_a_choice_answers_with_letters():
    assert LanguageShape(5, 6).choices == "letters"


def test_rooms_survive_the_disk(tmp_path):
    save_rooms(ROOMS, tmp_path / "rooms.safetensors")
    for a, b in zip(ROOMS, load_rooms(tmp_path / "rooms.safetensors"), strict=True):
        assert a.id == b.id and a.candidates == b.candidates
        np.testing.assert_array_equal(a.inside, b.inside)
        for p, q in zip(a.questions, b.questions, strict=True):
            np.testing.assert_array_equal(p.boxes, q.boxes)
            assert vars(p).keys() == vars(q).keys()
            assert all(vars(p)[k] == vars(q)[k] for k in vars(p) if k != "boxes")


def test_validation_leaves_training_alone(config):
    a, dataset = start(config)
    fit(a, dataset, config, quiet=True)
    b, dataset = start(config)
    losses = []
    fit(b, dataset, config,
        validate=lambda m: losses.append(validation_loss(m, dataset, config)) or losses[-1],
        quiet=True)
    assert len(losses) == 3 and all(name.startswith("loss_") for name in losses[0])
    for name, value in trainable_state_dict(a).items():
        torch.testing.assert_close(trainable_state_dict(b)[name], value, rtol=0, atol=0)


def test_mismatched_features_and_settings_are_one_clear_line(config):
    model, dataset = start(config)
    semantic, generative = features(ROOMS)
    with pytest.raises(ValueError, match="generative features are of 6 clips x 1 frames, the "
                                         "questions of 6 x 2"):
        QuestionDataset(ROOMS, semantic, generative[:, :1], dataset.encoder, CPU)
    with pytest.raises(ValueError, match="semantic features are of 5 clips"):
        QuestionDataset(ROOMS, semantic[:5], None, dataset.encoder, CPU)
    with pytest.raises(ValueError, match="no questions"):
        QuestionDataset([ROOMS[0].subset([])], semantic[:1], None, dataset.encoder, CPU)
    with pytest.raises(ValueError, match="expected at least 1"):
        FinetuneConfig(clips=0)
    state = {k: v for k, v in trainable_state_dict(model).items() if k != "newline"}
    with pytest.raises(ValueError, match="newline first"):
        load_trainable(model, state)


def test_recipes_are_complete():
    assert set(RECIPES) == {"embedded", "paper"}
    paper = RECIPES["paper"].tuning
    assert paper.clips * paper.accumulate * 8 == 128 and paper.lr == 1e-5 and paper.tune == "full"


def test_the_reader_reads_a_distance_from_true_points_and_not_from_noise(config):
    """The number is the distance of the mentioned region, in rooms that were not trained on."""
    rooms = []
    for i in range(96):
        room = sample_room(f"train/{i:05d}_0")
        draw = np.random.default_rng(i)
        camera = draw.uniform(-1, 1, (2, 1, 1, 3)) + draw.uniform(0.5, 4, (2, 1, 1, 1)) * [0, 0, 1]
        camera = np.broadcast_to(camera, (2, 14, 14, 3)).astype(np.float32)
        distance = round(float(np.linalg.norm(camera[1, 0, 0])), 2)  # the region is of frame 2
        question = replace(room.questions[1], number=distance, answer=str(distance))
        rooms.append(replace(room, camera=camera, questions=[question], candidates=[[]],
                             mentions=[[4]]))
    draw = torch.Generator().manual_seed(0)
    streams = {"true": torch.stack([true_geometry(room) for room in rooms]),
               "noise": torch.randn(len(rooms), 2, 4, 14, 14, generator=draw).half()}
    config = replace(config, steps=120, clips=16, questions=1, validate_every=200)
    scores = {}
    for name, second in streams.items():
        model, encoder = build(config, LanguageShape(5, 4, grid=2), CPU)
        train, test = (QuestionDataset(rooms[part], torch.zeros(len(rooms[part]), 2, 5, 14, 14),
                                       second[part], encoder, CPU)
                       for part in (slice(72), slice(72, None)))
        set_feature_statistics(model, train)
        fit(model, train, config, quiet=True)
        found = predict(model, test, "vsi_number")
        questions = [test.rooms[p.room].questions[0] for p in found]
        scores[name] = np.mean([values(q, p.output(q))["mra"]
                                for q, p in zip(questions, found, strict=True)])
        assert name == "noise" or readout_scores(model, train, test)["fused"]["depth_r2"] > 0.9
    assert scores["true"] > scores["noise"] + 0.25, scores


def test_the_gates_share_is_read_of_all_tokens_of_depth_edges_and_of_each_noun(config, monkeypatch):
    monkeypatch.setattr(readouts, "MASKS", 3)
    model, dataset = start(config)
    for room in dataset.rooms:  # 1 m away, but 2 m in one token of the last frame
        room.camera[..., 2] = 1
        room.camera[-1, 4, 9, 2] = 2
    dataset.visual.camera = torch.tensor(np.stack([room.camera for room in dataset.rooms]))

    def gated(semantic, generative, context=None):
        share = torch.full_like(semantic[:, :1], 0.25)
        share[1::2, :, 3:6, 8:12] = 0.75  # the mask of the distance's bed, in each second frame
        return semantic, share

    monkeypatch.setattr(model.fusion, "forward", gated)
    found = readout_scores(model, dataset, dataset)["gate"]
    assert found["class/bed"] == pytest.approx(0.75)
    assert found["all"] == pytest.approx(0.25 + 0.5 * 12 / 392)
    assert found["depth_edges"] == pytest.approx(0.75)  # the token and its eight neighbours
    monkeypatch.setattr(readouts, "MASKS", len(dataset.rooms) + 1)
    assert "class/bed" not in readout_scores(model, dataset, dataset)["gate"]
    monkeypatch.setattr(model.fusion, "forward", lambda semantic, *_: (semantic, None))
    assert {*readout_scores(model, dataset, dataset)} == {"fused"}


def test_losses_of_geometry_learn_and_are_no_part_of_the_answer(config):
    """In training both fall; the answers of a teacher do not depend on their heads."""
    model, dataset = start(config, depth_ray=1.0, layer_losses=1.0)
    batch = dataset.sample_batch(0, 0, 3, 2)

    def loss() -> float:
        torch.manual_seed(0)
        return float(model.geometry_loss(model.train()(batch.visual, batch.questions),
                                         batch.visual).detach())

    first = loss()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        output = model.train()(batch.visual, batch.questions)
        model.geometry_loss(output, batch.visual).backward()
        optimizer.step()
    assert loss() < 0.8 * first
    before = model.eval()(batch.visual, batch.questions)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("depth_ray.", "layer_losses.")):
                parameter.zero_()
    torch.testing.assert_close(model(batch.visual, batch.questions).hidden, before.hidden)
    assert before.layer is None  # the middle layer's states are kept in training only


def test_ridge_r2_is_that_of_least_squares():
    draw = np.random.default_rng(0)
    x, noise = draw.normal(size=(300, 4)), draw.normal(size=(300, 2))
    y = x @ draw.normal(size=(4, 2)) + 3 + noise
    one = np.c_[x, np.ones(300)]
    weights = np.linalg.lstsq(one[:200], y[:200], rcond=None)[0]
    error = ((y[200:] - one[200:] @ weights) ** 2).sum(0)
    expected = 1 - error / ((y[200:] - y[200:].mean(0)) ** 2).sum(0)
    batches = [(torch.from_numpy(x[i:i + 50]), torch.from_numpy(y[i:i + 50]))
               for i in range(0, 300, 50)]
    np.testing.assert_allclose(ridge_r2(batches[:4], batches[4:]), expected, atol=1e-3)


def test_correspondences_are_the_tokens_that_show_the_same_point():
    """Descriptors that tell every point apart have the lower loss; far points are ignored."""
    points = torch.rand(2, 2, 3, 3, 3) * 9
    points[:, 1] = points[:, 0].flatten(1, 2)[:, torch.randperm(9)].unflatten(1, (3, 3))
    losses = LayerLosses(8)
    torch.nn.init.zeros_(losses.depth.weight)
    camera, states = torch.ones(2, 2, 3, 3, 3), torch.randn(2, 2, 3, 3, 8)
    matching = states.clone()
    target = torch.cdist(points[:, 1].flatten(1, 2), points[:, 0].flatten(1, 2)).argmin(-1)
    for clip in range(2):
        matching[clip, 1] = states[clip, 0].flatten(0, 1)[target[clip]].unflatten(0, (3, 3))
    alone = losses(states, points + torch.tensor([0, 50])[None, :, None, None, None], camera)
    assert losses(matching, points, camera) < losses(states, points, camera)
    torch.testing.assert_close(alone, losses(states[:, :1], points[:, :1], camera[:, :1]))
