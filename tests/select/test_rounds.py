import dataclasses
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny_models import (
    make_bench,
    one_thread,  # noqa: F401
    same_weights,
    weights_of,
)

from curate.errors import NonFiniteLoss
from curate.read.documents import concatenate
from curate.records import DECISION, ROUND
from curate.select.methods import METHODS, RoundStart
from curate.select.rounds import run_round


def run(method, blocks, path, index=0, keep=0.3, seed=0, learn=True):
    return run_round(
        method,
        iter(blocks),
        path,
        round_index=index,
        method_name="name",
        keep=keep,
        seed=seed,
        learn=learn,
    )


def decisions_by_block(path, blocks):
    """The decisions of each block, which must lie in the file block after block."""
    rows = pq.read_table(path).to_pylist()
    assert [row["document_id"] for row in rows] == concatenate(blocks).ids.tolist()
    first = 0
    for block in blocks:
        yield rows[first : first + len(block)]
        first += len(block)


@pytest.mark.parametrize("name", ["random", "blade"])
@pytest.mark.parametrize("keep", [0.05, 0.3, 1.0])
def test_a_rounds_figures_are_those_of_its_decisions(planted, tmp_path, name, keep):
    bench = make_bench(planted, keep=keep)
    method = METHODS[name](bench.context)
    method.warm_up()
    blocks, path = planted.blocks(), tmp_path / "decisions.parquet"
    done = run(method, blocks, path, index=2, keep=keep)
    table = pq.read_table(path)
    assert table.schema.equals(DECISION)
    rows = table.to_pylist()
    kept = [row for row in rows if row["kept"]]
    every = concatenate(blocks)
    assert [row["tokens"] for row in rows] == every.lengths.tolist()
    assert [row["bytes"] for row in rows] == every.bytes.tolist()
    assert {row["round"] for row in rows} == {2}

    record = done.record
    assert sorted(record) == sorted(ROUND.names)
    assert record["documents_scored"] == len(rows)
    assert record["documents_kept"] == len(kept)
    assert record["tokens_scored"] == every.num_tokens
    assert record["tokens_kept"] == sum(row["tokens"] for row in kept)
    assert abs(record["tokens_kept"] - keep * every.num_tokens) < every.lengths.max()
    assert (record["round"], record["method"], record["keep_ratio"]) == (2, "name", keep)
    scores = np.array([row["score"] for row in rows])
    assert done.score_mean == pytest.approx(scores.mean(), abs=1e-6)
    assert done.score_std == pytest.approx(scores.std(), rel=1e-4)

    if name == "random":
        assert {row["excess_loss"] for row in rows} == {None}
        assert record["lambda"] is record["target_loss_proxy"] is None
    else:
        for row in rows:
            difference = row["proxy_loss"] - row["reference_loss"]
            assert row["excess_loss"] == pytest.approx(difference, abs=1e-5)
        assert record["reference_steps"] == 5
        assert record["target_loss_reference"] < record["target_loss_proxy"]


def test_every_blocks_threshold_is_its_lowest_kept_score(planted, tmp_path):
    bench = make_bench(planted)
    blocks, path = planted.blocks(tokens=300), tmp_path / "decisions"
    done = run(METHODS["random"](bench.context), blocks, path)
    weighted = []
    for block, rows in zip(blocks, decisions_by_block(path, blocks), strict=True):
        kept = [row["score"] for row in rows if row["kept"]]
        dropped = [row["score"] for row in rows if not row["kept"]]
        if not kept:
            assert {row["threshold"] for row in rows} == {None}
            continue
        assert {row["threshold"] for row in rows} == {min(kept)}
        assert min(kept) >= max(dropped, default=-1)
        weighted.append((min(kept), block.num_tokens))
    thresholds, tokens = zip(*weighted, strict=True)
    assert done.record["threshold"] == pytest.approx(np.average(thresholds, weights=tokens))


def test_blocks_of_one_document_keep_their_share_all_the_same(planted, tmp_path):
    """What whole documents leave over or under is carried from block to block."""
    bench = make_bench(planted)
    for keep in (0.02, 0.3, 0.77):
        blocks, path = planted.blocks(tokens=1), tmp_path / "decisions"
        done = run(METHODS["random"](bench.context), blocks, path, keep=keep)
        every = concatenate(blocks)
        assert done.record["documents_scored"] == len(every) == len(blocks)
        held, asked = 0, 0.0
        for (row,) in decisions_by_block(path, blocks):
            asked += keep * row["tokens"]
            held += row["tokens"] if row["kept"] else 0
            assert abs(held - asked) < every.lengths.max()


def test_random_scores_are_of_the_document_and_the_seed(planted, tmp_path):
    found = {}
    for seed, block_tokens in ((0, 300), (0, 900), (1, 300)):
        bench = make_bench(planted, seed=seed)
        blocks = planted.blocks(block_tokens, tokens=block_tokens)
        run(METHODS["random"](bench.context), blocks, tmp_path / "d", seed=seed)
        rows = pq.read_table(tmp_path / "d").to_pylist()
        found[seed, block_tokens] = {row["document_id"]: row["score"] for row in rows}
    assert found[0, 300] == found[0, 900]
    scores = np.array([[found[seed, 300][one] for seed in (0, 1)] for one in found[0, 300]])
    assert abs(np.corrcoef(scores.T)[0, 1]) < 0.3
    assert 0 <= scores.min() < 0.1 < 0.9 < scores.max() < 1


def test_a_round_that_does_not_learn_leaves_the_proxy_alone(planted, tmp_path):
    bench = make_bench(planted, warmup_tokens=0)
    method = METHODS["blade"](bench.context)
    before = weights_of(bench.proxy)
    run(method, planted.blocks(tokens=400), tmp_path / "d", learn=False)
    assert same_weights(weights_of(bench.proxy), before)
    assert not [one for one in bench.steps if one.model == "proxy"]
    run(method, planted.blocks(tokens=400), tmp_path / "d", index=1)
    assert not same_weights(weights_of(bench.proxy), before)
    assert len([one for one in bench.steps if one.model == "proxy"]) == len(
        planted.blocks(tokens=400)
    )


def test_a_round_without_blocks_is_a_round(planted, tmp_path):
    done = run(METHODS["random"](make_bench(planted).context), [], tmp_path / "d")
    assert pq.read_table(tmp_path / "d").num_rows == 0
    assert (done.record["documents_scored"], done.record["threshold"]) == (0, None)
    assert (done.score_mean, done.score_std) == (0, 0)


def test_a_broken_score_stops_the_round_and_leaves_no_file(planted, tmp_path):
    bench = make_bench(planted, warmup_tokens=0)
    method = METHODS["blade"](bench.context)
    blocks = planted.blocks()

    def poisoned():
        yield blocks[0]
        with torch.no_grad():
            bench.proxy.network.model.norm.weight[0] = float("nan")
        yield blocks[1]

    with pytest.raises(NonFiniteLoss):
        run(method, poisoned(), tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_a_score_that_a_file_cannot_hold_is_none(planted, tmp_path, name, value):
    """Whatever the method; 1e39 is infinite in the files' float32."""
    method = METHODS[name](make_bench(planted, warmup_tokens=240, reference_steps=1).context)
    method.warm_up()
    first, second = planted.blocks()[:2]
    score = method.score

    def spoilt(block):
        scores = score(block)
        if block is second:
            scores.score[3] = value
        return scores

    method.score = spoilt
    with pytest.raises(NonFiniteLoss) as caught:
        run(method, [first, second], tmp_path / "d")
    assert caught.value.problem == (
        f"Document {second.ids[3]} got a score that is not a finite number."
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e39], ids=str)
def test_a_score_of_a_token_that_a_file_cannot_hold_is_none(planted, tmp_path, value):
    method = METHODS["random"](make_bench(planted, granularity="token").context)
    block = planted.blocks()[0]
    scores = method.score(block)
    token_score = scores.token_score.copy()
    token_score[block.offsets[2] + 1] = value
    means = scores.score if abs(value) == 1e39 else scores.with_tokens(token_score, block).score
    method.score = lambda block: dataclasses.replace(scores, score=means, token_score=token_score)
    with pytest.raises(NonFiniteLoss, match=rf"^Document {block.ids[2]} got a (token )?score that"):
        run_round(
            method, [block], tmp_path / "d", masks=tmp_path / "m",
            round_index=0, method_name="name", keep=0.3, seed=0,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", ["proxy", "reference"])
def test_a_round_does_not_begin_with_a_loss_that_is_not_finite(planted, tmp_path, model):
    method = METHODS["random"](make_bench(planted).context)
    method.start_round = lambda index: RoundStart(**{f"target_loss_{model}": math.inf})
    with pytest.raises(NonFiniteLoss) as caught:
        run(method, planted.blocks(), tmp_path / "d", index=2)
    assert caught.value.problem == (
        f"Round 2 began with a loss of inf of the {model} model on the target."
    )
    assert list(tmp_path.iterdir()) == []


def test_figures_decided_anew_replace_those_of_the_record(planted, tmp_path):
    done = run(METHODS["random"](make_bench(planted).context), planted.blocks(), tmp_path / "d")
    anew = done.decided_anew({"threshold": 0.5, "documents_kept": 1, "tokens_kept": 2})
    expected = {**done.record, "threshold": 0.5, "documents_kept": 1, "tokens_kept": 2}
    assert anew.record == expected
    assert (anew.score_mean, anew.score_std) == (done.score_mean, done.score_std)
