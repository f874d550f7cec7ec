import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import make_documents, tokens_of

from curate.read import cache as cache_module
from curate.read import schema
from curate.read.cache import (
    TokenCache,
    cache_from_json,
    draw_batches,
    draw_blocks,
    plan_partitions,
    write_fragments,
)
from curate.read.corpus import open_corpus
from curate.read.documents import concatenate
from curate.read.tokenizer import train_tokenizer
from curate.records import DOCUMENT, make_document_id

ROWS = (900, 1, 700)


def text_of(shard, row):
    if row % 7 == 3:
        return None if row % 2 else ""
    return f"é{shard}:{row} " + "ab " * (row % 11)


def source_of(row):
    return f"s{row % 3}" if row % 5 else None


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    for shard, rows in enumerate(ROWS):
        columns = {
            "source": pa.array([source_of(row) for row in range(rows)], pa.string()),
            "text": [text_of(shard, row) for row in range(rows)],
            "number": pa.array(range(rows), pa.int16()),
        }
        pq.write_table(pa.table(columns), folder / f"{shard}.parquet", row_group_size=300)
    corpus = open_corpus(str(folder))
    return corpus, train_tokenizer(iter(["ab ab ab 0123456789:"] * 9), 270)


def build(pool, folder, partitions=3, seed=0):
    corpus, tokenizer = pool
    fragments = tuple(
        fragment
        for shard in corpus.shards
        for fragment in write_fragments(
            corpus,
            shard,
            tokenizer,
            folder,
            metadata_columns=["number", "source"],
            partitions=partitions,
            seed=seed,
        )
    )
    return TokenCache(folder, fragments, partitions)


LIMITS = {
    "one fragment a shard": {},
    "by tokens": {"FRAGMENT_TOKENS": 3000, "WINDOW_FRAGMENTS": 2},
    "by rows": {"FRAGMENT_ROWS": 256, "WINDOW_FRAGMENTS": 3},
}


@pytest.fixture(params=LIMITS)
def cache(request, pool, tmp_path, monkeypatch):
    for name, value in LIMITS[request.param].items():
        monkeypatch.setattr(cache_module, name, value)
    built = build(pool, tmp_path)
    assert (len(built.fragments) > 4) == bool(LIMITS[request.param])
    return built


def read_all(cache, *purpose, seed=0):
    return concatenate(list(cache.stream(seed, *purpose)))


def test_stream_gives_every_document_once_with_its_own_tokens_and_bytes(pool, cache):
    drawn = read_all(cache, "pass", 0)
    expected = {
        make_document_id(shard, row): text
        for shard, rows in enumerate(ROWS)
        for row in range(rows)
        if (text := text_of(shard, row))
    }
    assert sorted(drawn.ids.tolist()) == sorted(expected)
    texts = [expected[one] for one in drawn.ids.tolist()]
    assert tokens_of(drawn) == [one.tolist() for one in pool[1].encode(texts)]
    assert drawn.bytes.tolist() == [len(text.encode()) for text in texts]


def test_counts_are_those_of_the_stream(cache):
    drawn = read_all(cache)
    assert cache.documents == len(drawn)
    assert cache.tokens == drawn.num_tokens
    assert sum(one.bytes for one in cache.fragments) == drawn.bytes.sum()
    assert sum(one.rows for one in cache.fragments) == sum(ROWS)
    assert len({one.name for one in cache.fragments}) == len(cache.fragments)


def test_order_follows_from_seed_and_purpose_alone(cache):
    order = read_all(cache, "pass", 0).ids.tolist()
    again = cache_from_json(cache.folder, cache.to_json())
    assert again == cache
    assert read_all(again, "pass", 0).ids.tolist() == order
    others = [read_all(cache, "pass", 1), read_all(cache, "sync", 0), read_all(cache)]
    others.append(read_all(cache, "pass", 0, seed=1))
    orders = [order, *(one.ids.tolist() for one in others)]
    assert len(set(map(tuple, orders))) == 5
    assert all(sorted(one) == sorted(order) for one in orders)


def test_order_has_no_trace_of_the_pool_order_within_a_window(pool, tmp_path):
    cache = build(pool, tmp_path)
    order = read_all(cache, "pass", 0).ids
    ranks = np.argsort(np.argsort(order))
    assert abs(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1]) < 0.1
    assert abs(np.corrcoef(ranks[:-1], ranks[1:])[0, 1]) < 0.1
    for chunk in cache.stream(0, "pass", 0):
        assert 0.35 < np.mean(chunk.ids >> 40 == 0) / (900 / sum(ROWS)) < 1.65


def test_a_stream_passes_over_what_is_left_out_and_keeps_its_order(cache):
    some = cache.without(lambda ids: ids % 7 == 0)
    order = read_all(cache, "pass", 0).ids
    assert read_all(some, "pass", 0).ids.tolist() == order[order % 7 != 0].tolist()
    fewer = some.without(lambda ids: ids % 5 == 0)
    left = order[(order % 7 != 0) & (order % 5 != 0)]
    assert read_all(fewer, "pass", 0).ids.tolist() == left.tolist()
    assert len(read_all(fewer.without(lambda ids: ids >= 0), "pass", 0)) == 0


def test_partition_of_a_document_does_not_depend_on_its_fragment(pool, tmp_path, monkeypatch):
    def partition_of(cache):
        return {frozenset(chunk.ids.tolist()) for chunk in cache.stream(0)}

    whole = build(pool, tmp_path / "a")
    monkeypatch.setattr(cache_module, "FRAGMENT_ROWS", 256)
    cut = build(pool, tmp_path / "b")
    assert len(cut.fragments) > len(whole.fragments)
    assert partition_of(whole) == partition_of(cut)
    assert partition_of(build(pool, tmp_path / "c", seed=1)) != partition_of(whole)


def test_document_files_have_every_row_in_pool_order(pool, cache):
    table = pa.concat_tables([pq.read_table(path) for path in cache.document_files()])
    assert table.schema.names == [*DOCUMENT.names, "number", "source"]
    assert table.schema.field("number").type == pa.int16()
    rows = table.to_pylist()
    places = [(shard, row) for shard, rows in enumerate(ROWS) for row in range(rows)]
    assert [(one["shard_id"], one["row"]) for one in rows] == places
    encoded = pool[1].encode([text_of(*place) or "" for place in places])
    for one, (shard, row), ids in zip(rows, places, encoded, strict=True):
        assert one["document_id"] == make_document_id(shard, row)
        assert one["bytes"] == len((text_of(shard, row) or "").encode())
        assert one["tokens"] == len(ids)
        assert one["number"] == row
        assert one["source"] == source_of(row)


def test_writing_twice_gives_the_same_bytes(pool, tmp_path):
    one, other = build(pool, tmp_path / "a"), build(pool, tmp_path / "b")
    assert one.fragments == other.fragments
    names = sorted(path.name for path in one.folder.iterdir())
    assert len(names) == 2 * len(one.fragments)
    for name in names:
        assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes()


@pytest.mark.parametrize("batch_bytes", [1, 700, 10**9])
def test_tokens_do_not_depend_on_the_bytes_of_a_batch(pool, tmp_path, monkeypatch, batch_bytes):
    one = build(pool, tmp_path / "a")
    monkeypatch.setattr(schema, "BATCH_BYTES", batch_bytes)
    corpus = pool[0]
    batches = [batch for _, batch in corpus.iter_batches(corpus.shards[0], batch_rows=256)]
    assert (len(batches) > 6) == (batch_bytes < 10**9)
    other = build(pool, tmp_path / "b")
    assert one.fragments == other.fragments
    for path in one.folder.iterdir():
        assert path.read_bytes() == (other.folder / path.name).read_bytes()


def test_a_shard_of_empty_texts_is_logged_and_never_drawn(pool, tmp_path):
    pq.write_table(pa.table({"text": ["", None, ""]}), tmp_path / "empty.parquet")
    corpus = open_corpus(str(tmp_path / "empty.parquet"))
    (fragment,) = write_fragments(
        corpus,
        corpus.shards[0],
        pool[1],
        tmp_path / "cache",
        metadata_columns=[],
        partitions=2,
        seed=0,
    )
    assert (fragment.rows, fragment.documents, fragment.tokens, fragment.bytes) == (3, 0, 0, 0)
    cache = TokenCache(tmp_path / "cache", (fragment,), 2)
    assert len(read_all(cache)) == 0
    assert list(draw_blocks(cache.stream(0), 10)) == []
    assert pq.read_table(cache.document_files()[0])["document_id"].to_pylist() == [0, 1, 2]


def test_a_shard_without_rows_has_no_fragment(pool, tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "none.parquet")
    corpus = open_corpus(str(tmp_path / "none.parquet"))
    written = write_fragments(
        corpus,
        corpus.shards[0],
        pool[1],
        tmp_path / "cache",
        metadata_columns=[],
        partitions=2,
        seed=0,
    )
    assert list(written) == []
    assert read_all(TokenCache(tmp_path / "cache", (), 2)).num_tokens == 0


def test_partitions_follow_from_the_size_of_the_text(pool, monkeypatch):
    corpus, _ = pool
    assert plan_partitions(corpus) == 1
    tokens = sum(shard.text_bytes for shard in corpus.shards) / 4
    monkeypatch.setattr(cache_module, "PARTITION_TOKENS", int(tokens / 5))
    assert 5 <= plan_partitions(corpus) <= 6
    monkeypatch.setattr(cache_module, "PARTITION_TOKENS", 1)
    assert plan_partitions(corpus) == 64


@given(st.lists(st.lists(st.integers(1, 9), max_size=8), max_size=5), st.integers(1, 25))
def test_blocks_end_with_the_document_that_fills_them(chunks, block_tokens):
    first = itertools.accumulate(map(len, chunks), initial=0)
    stream = [
        make_documents(lengths, first_id=start)
        for lengths, start in zip(chunks, first, strict=False)
    ]
    every = concatenate(stream)
    blocks = list(draw_blocks(iter(stream), block_tokens))
    together = concatenate(blocks)
    assert together.ids.tolist() == every.ids.tolist()
    assert tokens_of(together) == tokens_of(every)
    drawn = 0
    for block in blocks:
        before_last = drawn + block.num_tokens - block.lengths[-1]
        assert before_last // block_tokens == drawn // block_tokens
        drawn += block.num_tokens
        if block is not blocks[-1]:
            assert drawn // block_tokens > before_last // block_tokens
    whole = [block.ids.tolist() for block in draw_blocks(iter([every]), block_tokens)]
    assert [block.ids.tolist() for block in blocks] == whole
    for block, chunk in itertools.product(blocks, stream):  # which would stay in memory
        assert not np.shares_memory(block.input_ids, chunk.input_ids)


@given(
    st.lists(st.lists(st.integers(1, 90), max_size=8), max_size=5),
    st.integers(1, 25),
    st.one_of(st.none(), st.integers(1, 25)),
)
def test_batches_hold_every_token_once_and_no_long_document_whole(chunks, batch_tokens, longest):
    first = itertools.accumulate(map(len, chunks), initial=0)
    stream = [
        make_documents(lengths, seed=start, first_id=start)
        for lengths, start in zip(chunks, first, strict=False)
    ]
    every, piece = concatenate(stream), longest or batch_tokens
    batches = list(draw_batches(iter(stream), batch_tokens, 7, longest=longest))
    drawn = concatenate(batches)
    assert max([0, *drawn.lengths]) <= piece
    assert all(one.num_tokens < batch_tokens + piece for one in batches)
    assert drawn.bytes.sum() == every.bytes.sum()
    whole = drawn.take(np.flatnonzero(np.isin(drawn.ids, every.ids[every.lengths <= piece])))
    kept = every.take(np.flatnonzero(every.lengths <= piece))
    assert whole.ids.tolist() == kept.ids.tolist()
    assert tokens_of(whole) == tokens_of(kept)
    for place in np.flatnonzero(every.lengths > piece):
        mine = drawn.take(np.flatnonzero(drawn.ids == every.ids[place]))
        tokens = tokens_of(every)[place]
        expected = [tokens[at : at + piece] for at in range(0, len(tokens), piece)]
        assert sorted(tokens_of(mine)) == sorted(expected)


def test_the_pieces_of_a_long_document_are_scattered():
    stream = [make_documents([4] * 500 + [4000] + [4] * 500)]
    batches = list(draw_batches(iter(stream), 40, 3))
    holding = [place for place, one in enumerate(batches) if 500 in one.ids]
    assert len(holding) > 60  # of 100 pieces
    assert np.mean(holding) == pytest.approx(len(batches) / 2, rel=0.15)
    again = draw_batches(iter(stream), 40, 3)
    other = draw_batches(iter(stream), 40, 4)
    order = [one.ids.tolist() for one in batches]
    assert [one.ids.tolist() for one in again] == order
    assert [one.ids.tolist() for one in other] != order
