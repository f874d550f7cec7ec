"""Token granularity: masks, losses and gradients against their plain definitions."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_models import (
    make_bench,
    make_documents,
    make_model,
    one_thread,  # noqa: F401
    plain_token_losses,
    same_weights,
    tokens_of,
    weights_of,
)

from curate.errors import CurateError
from curate.pipeline.checkpoints import load_state, save_state
from curate.read.documents import concatenate
from curate.read.windows import make_batches, rolling_windows
from curate.records import DECISION, DOCUMENT, MASK, SELECTION
from curate.score.loss import document_losses, mean_by_document, token_losses
from curate.select.budget import token_noise
from curate.select.final import RoundScale
from curate.select.masks import MaskReader, select_tokens
from curate.select.methods import METHODS
from curate.select.rounds import run_round
from curate.train.optimizer import Optimizer, Term, ramp_then_constant

LENGTHS = [3, 0, 8, 9, 1, 30, 17]
"""Empty, one window exactly, one more than a window, many windows."""


def token_bench(planted, **settings):
    return make_bench(planted, granularity="token", **settings)


def random_mask(documents, seed=0, share=0.4):
    return np.random.default_rng(seed).random(documents.num_tokens) < share


def run(method, blocks, folder, keep=0.3, learn=True):
    return run_round(
        method,
        blocks,
        folder / "decisions",
        masks=folder / "masks",
        round_index=0,
        method_name="blade",
        keep=keep,
        seed=0,
        learn=learn,
    )


# Losses and gradients.


@pytest.mark.parametrize("microbatch_tokens", [8, 24, 4096])
def test_token_losses_are_those_of_a_plain_loop(microbatch_tokens):
    model = make_model(microbatch_tokens=microbatch_tokens)
    documents = make_documents(LENGTHS)
    expected = [
        loss for one in tokens_of(documents) for loss in plain_token_losses(model.network, one)
    ]
    found = token_losses(model, documents)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)
    means = mean_by_document(found.detach().double().numpy(), documents)
    np.testing.assert_allclose(means, document_losses(model, documents), rtol=1e-6)


def test_no_documents_have_no_token_losses():
    assert len(token_losses(make_model(), make_documents([]))) == 0
    assert len(token_losses(make_model(), make_documents([0, 0]))) == 0


def test_a_step_on_masked_documents_has_the_gradient_of_the_plain_masked_mean():
    documents = make_documents(LENGTHS)
    mask = random_mask(documents)
    model, plain = make_model(microbatch_tokens=24), make_model()
    losses = [
        loss for one in tokens_of(documents) for loss in plain_token_losses(plain.network, one)
    ]
    mean = torch.stack(losses)[torch.from_numpy(mask)].mean()
    mean.backward()
    train = make_bench_train()
    optimizer = Optimizer(model, "proxy", train, lambda step: 1e-12)
    record = optimizer.step([Term(documents.masked(mask))])
    assert record.loss == pytest.approx(float(mean.detach()), rel=1e-5)
    norm = torch.sqrt(sum((p.grad**2).sum() for p in plain.network.parameters()))
    assert record.gradient_norm == pytest.approx(float(norm), rel=1e-4)


def make_bench_train(**settings):
    from curate.config.schema import TrainConfig

    return TrainConfig(batch_tokens=240, learning_rate=5e-3, ramp_steps=3, **settings)


def test_tokens_that_do_not_count_are_context_and_no_label():
    documents = make_documents(LENGTHS)
    mask = random_mask(documents)
    windows = rolling_windows(documents.lengths, 8, 3)
    whole = list(make_batches(documents, windows, prefix_id=3, microbatch_tokens=64))
    masked = list(make_batches(documents.masked(mask), windows, prefix_id=3, microbatch_tokens=64))
    counted = 0
    for ours, theirs in zip(masked, whole, strict=True):
        np.testing.assert_array_equal(ours.inputs, theirs.inputs)
        some = ours.labels != -100
        np.testing.assert_array_equal(ours.labels[some], theirs.labels[some])
        counted += int(some.sum())
    assert counted == mask.sum()


def test_masks_follow_their_documents():
    documents = make_documents(LENGTHS)
    mask = random_mask(documents)
    order = np.array([5, 2, 0, 5])
    moved = documents.masked(mask).take(order)
    pieces = np.split(mask, documents.offsets[1:-1])
    np.testing.assert_array_equal(moved.counted, np.concatenate([pieces[i] for i in order]))
    joined = concatenate([documents.take(order), moved])
    assert joined.counted[: moved.num_tokens].all()
    np.testing.assert_array_equal(joined.counted[moved.num_tokens :], moved.counted)
    assert joined.num_counted == moved.num_tokens + int(moved.counted.sum())


# The method.


@pytest.mark.parametrize("lambda_", [0.0, 1.0])
def test_token_scores_are_the_penalized_excess_loss_of_each_token(planted, lambda_):
    bench = token_bench(planted, control="proxy", lambda_=lambda_)
    method = METHODS["blade"](bench.context)
    method.warm_up()
    method.start_round(0)
    block = planted.blocks(tokens=240)[0]
    scores = method.score(block)
    with torch.no_grad():
        proxy = token_losses(bench.proxy, block).double().numpy()
        reference = token_losses(method._pair.reference, block).double().numpy()
    np.testing.assert_allclose(scores.token_score, (lambda_ or 1.0) * (proxy - reference))
    means = mean_by_document(scores.token_score, block)
    np.testing.assert_array_equal(scores.score, means)
    np.testing.assert_allclose(scores.proxy_loss, document_losses(bench.proxy, block), rtol=1e-5)


def test_the_forward_pass_that_scores_is_the_one_that_is_trained_on(planted):
    """With the live proxy as control: no further forward pass, and the step of the definition."""
    bench = token_bench(planted, control="proxy", train_on="kept")
    method = METHODS["blade"](bench.context)
    twin = bench.proxy.trainable_copy()
    train = bench.context.config.train
    optimizer = Optimizer(twin, "proxy", train, ramp_then_constant(5e-3, 3))
    method.start_round(0)
    calls = []
    bench.proxy.network.register_forward_hook(lambda *_: calls.append(1))
    decoder = bench.proxy.network.get_decoder()
    decoder.register_forward_hook(lambda *_: calls.append(1))
    for block in planted.blocks(tokens=240)[:3]:
        mask = random_mask(block, seed=len(calls))
        method.score(block)
        scored = len(calls)
        method.learn(block, mask)
        assert len(calls) == scored
        optimizer.step([Term(block.masked(mask))])
    assert all(
        torch.allclose(ours, theirs, atol=2e-5)
        for ours, theirs in zip(weights_of(bench.proxy), weights_of(twin), strict=True)
    )


def test_no_graph_is_held_of_a_document_of_several_batches(planted):
    bench = token_bench(planted, control="proxy", train_on="kept")
    method = METHODS["blade"](bench.context)
    method.start_round(0)
    block = make_documents([2000], vocabulary=250)
    with torch.no_grad():
        expected = token_losses(bench.proxy, block).double().numpy()
        expected -= token_losses(method._pair.reference, block).double().numpy()
    scores = method.score(block)
    assert method._forward is None
    np.testing.assert_allclose(scores.token_score, expected, atol=1e-6)
    bench.steps.clear()
    method.learn(block, np.ones(2000, dtype=bool))
    assert len(bench.steps) == 8


def test_no_graph_is_held_that_does_not_fit_into_memory(planted):
    """The step is then that of the definition all the same, after another forward pass."""
    bench = token_bench(planted, control="proxy", train_on="kept")
    method = METHODS["blade"](bench.context)
    twin = bench.proxy.trainable_copy()
    optimizer = Optimizer(twin, "proxy", bench.context.config.train, ramp_then_constant(5e-3, 3))
    method.start_round(0)
    block = planted.blocks(tokens=240)[0]
    mask = random_mask(block)
    for held in (block.num_tokens, block.num_tokens - 1):
        bench.proxy.held_tokens = held
        scores = method.score(block)
        held_graph, method._forward = method._forward, None
        assert (held_graph is None) == (held < block.num_tokens)
    with torch.no_grad():
        expected = token_losses(bench.proxy, block) - token_losses(method._pair.reference, block)
    np.testing.assert_allclose(scores.token_score, expected.double().numpy(), atol=1e-6)
    method.learn(block, mask)
    optimizer.step([Term(block.masked(mask))])
    assert same_weights(weights_of(bench.proxy), weights_of(twin))


def test_under_the_lookahead_control_the_proxy_trains_on_the_mask(planted):
    bench = token_bench(planted, control="lookahead", train_on="kept")
    method = METHODS["blade"](bench.context)
    twin = bench.proxy.trainable_copy()
    train = bench.context.config.train
    optimizer = Optimizer(twin, "proxy", train, ramp_then_constant(5e-3, 3))
    method.start_round(0)
    block = planted.blocks(tokens=240)[0]
    mask = random_mask(block)
    method.score(block)
    method.learn(block, mask)
    optimizer.step([Term(block.masked(mask))])
    assert same_weights(weights_of(bench.proxy), weights_of(twin))


def test_nothing_kept_is_no_step(planted):
    bench = token_bench(planted, control="proxy", train_on="kept")
    method = METHODS["blade"](bench.context)
    method.start_round(0)
    block, steps = planted.blocks(tokens=240)[0], len(bench.steps)
    method.score(block)
    method.learn(block, np.zeros(block.num_tokens, dtype=bool))
    assert len(bench.steps) == steps


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_token_mixture_adds_random_unselected_tokens(planted, share):
    bench = token_bench(planted, train_on="mixture", mixture_kept_share=share)
    method = METHODS["blade"](bench.context)
    method.start_round(0)
    block = planted.blocks(tokens=240)[0]
    mask = random_mask(block, share=0.2)
    filler = method._filler(block, mask)
    assert not (filler & mask).any()
    assert filler.sum() == pytest.approx(mask.sum() * (1 - share) / share, abs=1)


@pytest.mark.parametrize("name", ["blade", "color", "rho1"])
def test_tokens_like_the_target_are_kept(planted, tmp_path, name):
    settings = {"control": "proxy", "train_on": "kept", "lambda_": 1.0, "reference_steps": 10}
    bench = token_bench(planted, **settings)
    method = METHODS[name](bench.context)
    method.warm_up()
    result = run(method, planted.blocks(tokens=240), tmp_path, learn=name != "color")
    rows = pq.read_table(tmp_path / "decisions").to_pylist()
    like = sum(row["tokens_kept"] for row in rows if row["document_id"] % 2 == 0)
    kept = sum(row["tokens_kept"] for row in rows)
    assert abs(kept - 0.3 * planted.cache.tokens) <= 1
    assert kept == result.record["tokens_kept"]
    assert like > 0.7 * kept


def test_masks_on_disk_are_the_top_tokens_of_each_block(planted, tmp_path):
    bench = token_bench(planted, control="lookahead")
    method = METHODS["color"](bench.context)
    method.warm_up()
    run(method, planted.blocks(tokens=240), tmp_path, learn=False)
    masks = pq.read_table(tmp_path / "masks")
    assert masks.schema.equals(MASK)
    by_id = {row["document_id"]: row for row in masks.to_pylist()}
    decisions = {
        row["document_id"]: row for row in pq.read_table(tmp_path / "decisions").to_pylist()
    }
    owed = 0.0
    for block in planted.blocks(tokens=240):
        scores = method.score(block).token_score
        kept = [
            by_id[one]["loss_mask"] if one in by_id else [False] * int(length)
            for one, length in zip(block.ids, block.lengths, strict=True)
        ]
        flat = np.concatenate(kept).astype(bool)
        owed += 0.3 * block.num_tokens
        assert abs(flat.sum() - owed) <= 0.5
        owed -= flat.sum()
        assert scores[flat].min() >= scores[~flat].max()
        for one, tokens, mask in zip(block.ids.tolist(), tokens_of(block), kept, strict=True):
            row = decisions[one]
            assert row["tokens_kept"] == sum(mask)
            assert row["kept"] == (one in by_id) == any(mask)
            if one in by_id:
                assert by_id[one]["input_ids"] == tokens


def test_random_masks_are_a_function_of_seed_document_and_position(planted, tmp_path):
    bench = token_bench(planted)
    method = METHODS["random"](bench.context)
    every = concatenate(planted.blocks(tokens=240))
    expected = dict(zip(every.ids.tolist(), _split(method.score(every), every), strict=True))
    for block in planted.blocks(tokens=90):
        for one, scores in zip(block.ids.tolist(), _split(method.score(block), block), strict=True):
            np.testing.assert_array_equal(scores, expected[one])
    noise = token_noise(5, every)
    assert len(np.unique(noise)) == len(noise)


def _split(scores, block):
    return np.split(scores.token_score, block.offsets[1:-1])


def test_a_restored_token_method_goes_on_bit_for_bit(planted, tmp_path):
    settings = {"control": "proxy", "lambda_": 1.0, "train_on": "kept"}
    method = METHODS["blade"](token_bench(planted, **settings).context)
    method.warm_up()
    run(method, planted.blocks(tokens=240), tmp_path)
    save_state(method.state_dict(), tmp_path / "checkpoint")
    other = METHODS["blade"](token_bench(planted, **settings).context)
    other.load_state_dict(load_state(tmp_path / "checkpoint"))
    for one, name in ((method, "on"), (other, "again")):
        (tmp_path / name).mkdir()
        run(one, planted.blocks(tokens=240), tmp_path / name)
    for file in ("decisions", "masks"):
        ours, theirs = (pq.read_table(tmp_path / name / file) for name in ("on", "again"))
        assert ours.equals(theirs)


# The outcome.


def test_the_last_visit_decides_and_the_weight_is_the_kept_share(tmp_path):
    tokens = {1: 4, 2: 0, 3: 2, 4: 3, 5: 5}
    documents = [(one, 0, one, count, 9, None) for one, count in tokens.items()]
    visits = [(1, 0, 2), (3, 0, 2), (4, 0, 0), (1, 1, 1), (3, 1, 0), (4, 1, 3)]
    decisions = [
        (
            one,
            visit,
            tokens[one],
            9,
            tokens[one],
            2.0,
            1.0,
            0.5 + visit,
            None,
            None,
            None,
            1.0 + visit,
            0.0,
            kept > 0,
            kept,
        )
        for one, visit, kept in visits
    ]
    masks = [
        (one, visit, list(range(tokens[one])), [i < kept for i in range(tokens[one])])
        for one, visit, kept in visits
        if kept
    ]

    def write(name, rows, schema):
        path = tmp_path / name
        columns = [list(column) for column in zip(*rows, strict=True)]
        pq.write_table(pa.table(columns, schema=schema), path)
        return path

    totals = select_tokens(
        tmp_path / "selection",
        tmp_path / "sorted",
        documents=[write("documents", documents, DOCUMENT)],
        decisions=[write("decisions", decisions, DECISION)],
        masks=[write("masks", masks[::-1], MASK)],
        scales=[RoundScale(0, 0.5, 1.0, 1.0), RoundScale(1, 0.5, 1.0, 2.0)],
    )
    assert dataclasses.astuple(totals) == (2, 4)
    table = pq.read_table(tmp_path / "selection")
    assert (table.schema.names, table.schema.types) == (SELECTION.names, SELECTION.types)
    found = [tuple(row.values()) for row in table.to_pylist()]
    assert found == [
        (1, 0.25, 0.5, 1.5, 1, True, 1, "selected"),
        (2, 0.0, None, None, None, False, 0, "empty"),
        (3, 0.0, 0.5, 1.5, 1, False, 0, "overruled"),
        (4, 1.0, 0.5, 1.5, 1, True, 3, "selected"),
        (5, 0.0, None, None, None, False, 0, "never_selected"),
    ]
    reader = MaskReader(tmp_path / "sorted")
    first = reader.take(1).to_pylist()
    assert first == [{"input_ids": [0, 1, 2, 3], "loss_mask": [True, False, False, False]}]
    assert reader.take(1)["loss_mask"].to_pylist() == [[True, True, True]]


def test_masks_below_a_path_that_looks_like_a_pattern(tmp_path):
    """Beside a folder that the pattern would match, whose masks are others."""
    for name, mask in (("x1", False), ("x[1]", True)):
        folder = tmp_path / name
        folder.mkdir()
        document = {"document_id": [1], "shard_id": [0], "row": [1], "tokens": [1], "bytes": [9]}
        visit = {"document_id": [1], "round": [0], "tokens": [1], "score": [1.0], "kept": [mask]}
        tables = {
            "documents": (document, DOCUMENT),
            "decisions": (visit | {"tokens_kept": [int(mask)]}, DECISION),
            "masks": ({"document_id": [1], "round": [0], "loss_mask": [[mask]]}, MASK),
        }
        for file, (values, schema) in tables.items():
            columns = [values.get(field.name, [None]) for field in schema]
            pq.write_table(pa.table(columns, schema=schema), folder / file)
    totals = select_tokens(
        folder / "selection",
        folder / "sorted",
        documents=[folder / "documents"],
        decisions=[folder / "decisions"],
        masks=[folder / "masks"],
        scales=[RoundScale(0, 1.0, 0.0, 1.0)],
    )
    assert dataclasses.astuple(totals) == (1, 1)
    assert MaskReader(folder / "sorted").take(1)["loss_mask"].to_pylist() == [[True]]


def test_masks_are_passed_over_in_batches(tmp_path, monkeypatch):
    rows = 5000
    masks = pa.table({"input_ids": [[row] for row in range(rows)], "loss_mask": [[True]] * rows})
    pq.write_table(masks, tmp_path / "sorted")
    taken, take = [], MaskReader.take
    monkeypatch.setattr(
        MaskReader, "take", lambda reader, count: taken.append(count) or take(reader, count)
    )
    reader = MaskReader(tmp_path / "sorted")
    reader.skip(4321)
    assert max(taken) <= 1024
    assert reader.take(2)["input_ids"].to_pylist() == [[4321], [4322]]
    with pytest.raises(CurateError, match="fewer token masks"):
        reader.skip(rows)
