import gzip
import io
import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import InvalidInput
from curate.read import jsonl
from curate.read.corpus import open_corpus

RECORDS = [
    {"text": "one\u2028é", "n": 1, "tags": ["a"], "meta": {"x": 1.5}},
    {"text": "2024-01-01", "n": None, "tags": [], "meta": {"x": 2}},
    {"text": "three", "n": 3},
]
SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("n", pa.int64()),
        ("tags", pa.list_(pa.string())),
        ("meta", pa.struct([("x", pa.float64())])),
    ]
)


def lines(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def zstd(data):
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


def read(corpus, index=0, **options):
    pairs = list(corpus.iter_batches(corpus.shards[index], **options))
    sizes = [batch.num_rows for _, batch in pairs]
    assert [first for first, _ in pairs] == [sum(sizes[:i]) for i in range(len(sizes))]
    assert all(0 < size <= options.get("batch_rows", 1024) for size in sizes)
    return [row for _, batch in pairs for row in batch.to_pylist()]


def padded(records):
    return [{name: record.get(name) for name in SCHEMA.names} for record in records]


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl", bytes),
        ("a.ndjson", bytes),
        ("a.jsonl.gz", gzip.compress),
        ("a.jsonl.zst", zstd),
    ],
)
def test_plain_and_compressed(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(lines(RECORDS)))
    corpus = open_corpus(str(tmp_path))
    assert corpus.schema == SCHEMA
    assert read(corpus) == padded(RECORDS)
    assert read(corpus, batch_rows=2) == padded(RECORDS)
    (shard,) = corpus.shards
    assert (shard.format, shard.rows) == ("jsonl", None)
    assert shard.bytes == (tmp_path / name).stat().st_size
    assert shard.text_bytes == shard.bytes * (1 if pack is bytes else 4)


def test_several_compressed_members(tmp_path):
    half = [gzip.compress(lines(RECORDS[:1])), gzip.compress(lines(RECORDS[1:]))]
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(half))
    half = [zstd(lines(RECORDS[:1])), zstd(lines(RECORDS[1:]))]
    (tmp_path / "b.jsonl.zst").write_bytes(b"".join(half))
    corpus = open_corpus(str(tmp_path))
    assert read(corpus, 0) == read(corpus, 1) == padded(RECORDS)


def test_blank_lines_byte_order_mark_and_no_last_line_end(tmp_path):
    data = b'\xef\xbb\xbf\n  \r\n{"text": "a"}\r\n\n{"text": "b"}'
    (tmp_path / "a.jsonl").write_bytes(data)
    assert read(open_corpus(str(tmp_path))) == [{"text": "a"}, {"text": "b"}]


def test_projection_still_counts_records(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(RECORDS))
    corpus = open_corpus(str(tmp_path))
    assert read(corpus, columns=["n"]) == [{"n": 1}, {"n": None}, {"n": 3}]
    assert [b.num_rows for _, b in corpus.iter_batches(corpus.shards[0], [])] == [3]


def test_many_chunks_and_a_line_longer_than_a_chunk(tmp_path):
    texts = ["x" * 300_000 + str(i) for i in range(40)]
    texts[20] = "y" * (jsonl.CHUNK_BYTES * 2)
    (tmp_path / "a.jsonl").write_bytes(lines({"text": text} for text in texts))
    assert [row["text"] for row in read(open_corpus(str(tmp_path)))] == texts


def test_memory_does_not_grow_with_the_file(tmp_path):
    line = json.dumps({"text": "x" * 1000}) + "\n"
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line.encode() * 60_000, 1))
    corpus = open_corpus(str(tmp_path))
    before, peak = pa.total_allocated_bytes(), 0
    for _, _batch in corpus.iter_batches(corpus.shards[0]):
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 4 * jsonl.CHUNK_BYTES


@given(
    records=st.lists(st.binary(min_size=1, max_size=9).filter(lambda b: b"\n" not in b)),
    least=st.integers(1, 20),
)
def test_chunks_are_whole_lines(records, least):
    data = b"{" + b"\n".join(records)
    chunks = list(jsonl.line_chunks(io.BytesIO(data), least))
    assert b"".join(chunks).strip() == data.strip()
    assert all(chunk.endswith(b"\n") for chunk in chunks[:-1])


def test_shards_are_promoted_to_one_schema(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines([{"text": "a", "n": 1, "u": None}]))
    (tmp_path / "b.jsonl").write_bytes(lines([{"n": 1.5, "u": "x", "text": "b", "extra": True}]))
    (tmp_path / "c.jsonl").write_bytes(b"")
    corpus = open_corpus(str(tmp_path))
    assert corpus.schema.names == ["text", "n", "u", "extra"]
    assert read(corpus, 0) == [{"text": "a", "n": 1.0, "u": None, "extra": None}]
    assert read(corpus, 1) == [{"text": "b", "n": 1.5, "u": "x", "extra": True}]
    assert read(corpus, 2) == []


def test_shards_that_do_not_unify(tmp_path):
    one, two = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    one.write_bytes(lines([{"text": "a", "n": 1}]))
    two.write_bytes(lines([{"text": "a", "n": "x"}]))
    with pytest.raises(InvalidInput) as caught:
        open_corpus(str(tmp_path))
    assert caught.value.problem == (
        f'Shard {two} has column "n" as string, but shard {one} has it as int64.'
    )


@pytest.fixture
def long_shard(tmp_path):
    """Writes a shard whose last record lies behind the prefix that is inferred from."""

    def write(last):
        path = tmp_path / "a.jsonl"
        filler = lines([{"text": "x" * 1_000_000, "n": 1}]) * 18
        path.write_bytes(filler + last + b"\n")
        corpus = open_corpus(str(path))
        with pytest.raises(InvalidInput) as caught:
            read(corpus)
        return path, caught.value

    return write


def test_a_late_value_that_does_not_fit(long_shard):
    path, error = long_shard(b'{"text": "a", "n": "x"}')
    assert error.problem == (
        f"Shard {path} cannot be read as JSON lines in rows 15 to 18 "
        "(JSON parse error: Column(/n) changed from number to string)."
    )
    assert error.remedy == "Repair those lines, or give each field values of one type."


def test_a_late_field(long_shard):
    path, error = long_shard(b'{"text": "a", "z": 1}')
    assert error.problem == (
        f'Shard {path} has a field "z" in rows 15 to 18 that the first 16 MiB of no shard has.'
    )
    assert error.remedy == (
        "Put a record with every field near the start of a shard, or drop the field."
    )


def test_a_late_broken_line(long_shard):
    path, error = long_shard(b'{"text": "a", ')
    assert error.problem.startswith(f"Shard {path} cannot be read as JSON lines in rows 15 to 18 (")


@pytest.mark.parametrize(
    "line", [b'{"text": ', b"[1]", b'{"text": "\xff"}', b'{"text": "\\ud800"}']
)
def test_a_broken_line_at_the_start(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(RECORDS) + line + b"\n")
    with pytest.raises(InvalidInput) as caught:
        open_corpus(str(path))
    assert caught.value.problem.startswith(
        f"Shard {path} cannot be read as JSON lines in rows 0 to 3"
    )


@pytest.mark.parametrize(("name", "pack"), [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstd)])
def test_truncated_compressed_file(tmp_path, name, pack):
    path = tmp_path / name
    path.write_bytes(pack(lines(RECORDS))[:-12])
    with pytest.raises(InvalidInput, match="is not a readable JSONL file"):
        open_corpus(str(path))


def test_only_empty_shards(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\n\n")
    with pytest.raises(InvalidInput) as caught:
        open_corpus(str(tmp_path))
    assert caught.value.problem == 'The pool has no column "text" (it has: none).'
