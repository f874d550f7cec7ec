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
from curate.select.methods import METHODS
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
    run(method, planted.blocks(), tmp_path / "d", learn=False)
    assert same_weights(weights_of(bench.proxy), before)
    assert not [one for one in bench.steps if one.model == "proxy"]
    run(method, planted.blocks(), tmp_path / "d", index=1)
    assert not same_weights(weights_of(bench.proxy), before)
    assert len([one for one in bench.steps if one.model == "proxy"]) == len(planted.blocks())


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


def test_figures_decided_anew_replace_those_of_the_record(planted, tmp_path):
    done = run(METHODS["random"](make_bench(planted).context), planted.blocks(), tmp_path / "d")
    anew = done.decided_anew({"threshold": 0.5, "documents_kept": 1, "tokens_kept": 2})
    expected = {**done.record, "threshold": 0.5, "documents_kept": 1, "tokens_kept": 2}
    assert anew.record == expected
    assert (anew.score_mean, anew.score_std) == (done.score_mean, done.score_std)
