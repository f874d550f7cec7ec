import gzip
import io
import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import DamagedShard, InvalidInput
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


BIG, SIGNED = 2**64 - 1, 2**53 + 1
ROUNDED = (
    'Shard {path} has integers in field "{name}" that would be rounded ({one} for one), as the '
    "field also has fractions, negative values or integers of more than 64 bits."
)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None, 2**63], pa.uint64()),
        ([BIG, 0, 2**63 + 12345], pa.uint64()),
        ([-SIGNED, SIGNED, 2**63 - 1], pa.int64()),
        ([[1, BIG], [], None], pa.list_(pa.uint64())),
        ([{"a": BIG, "b": 1.5}, {"a": None}], pa.struct([("a", pa.uint64()), ("b", pa.float64())])),
        ([[{"a": BIG}], [{"a": 1}]], pa.list_(pa.struct([("a", pa.uint64())]))),
        (
            [{"a": BIG, "b": 2**60}, {"b": 1.5}],
            pa.struct([("a", pa.uint64()), ("b", pa.float64())]),
        ),
        ([1.5, 2**53, 10**22, 1e300, -(2**60)], pa.float64()),
        ([0.1234567890123456789, 1e17, 12345678901234567.5], pa.float64()),
    ],
)
def test_large_integers_are_what_was_written(tmp_path, values, kind):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines([{"text": "a", "seen": "2024-01-01", "n": value} for value in values]))
    rows, problems = read_with_problems(path)
    assert not problems
    corpus = open_corpus(str(path))
    assert corpus.schema.field("n").type == kind
    assert corpus.schema.field("seen").type == pa.string()
    assert [row["n"] for row in rows] == [
        value
        if not isinstance(value, dict)
        else {field.name: value.get(field.name) for field in kind}
        for value in values
    ]


@pytest.mark.parametrize(
    ("values", "name", "one"),
    [
        ([SIGNED, 1.5], "n", SIGNED),
        ([BIG, -1], "n", BIG),
        ([BIG, 1.0], "n", BIG),
        ([2**64 + 1], "n", 2**64 + 1),
        ([[SIGNED, 1.5]], "n", SIGNED),
        ([{"a": [SIGNED]}, {"a": [1.5]}], "n.a", SIGNED),
    ],
)
def test_integers_that_no_type_holds_are_refused(tmp_path, values, name, one):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines([{"text": "a", "n": value} for value in values]))
    with pytest.raises(InvalidInput) as caught:
        open_corpus(str(path), tolerant=True)
    assert not isinstance(caught.value, DamagedShard)
    assert caught.value.problem == ROUNDED.format(path=path, name=name, one=one)
    assert caught.value.remedy == "Write the field as text in the JSONL, or the data as Parquet."


def test_shards_of_signed_and_unsigned_integers(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines([{"text": "a", "n": SIGNED}]))
    (tmp_path / "b.jsonl").write_bytes(lines([{"text": "a", "n": BIG}]))
    corpus = open_corpus(str(tmp_path))
    assert corpus.schema.field("n").type == pa.uint64()
    assert read(corpus, 0) + read(corpus, 1) == [{"text": "a", "n": n} for n in (SIGNED, BIG)]


@pytest.mark.parametrize("kind", ["shards", "lines"])
@pytest.mark.parametrize("value", [lambda n: n, lambda n: [{"m": n}]], ids=["plain", "nested"])
def test_negative_integers_beside_unsigned_ones_are_refused(tmp_path, kind, value):
    """In another shard, or in the same one where a broken line keeps them apart."""
    path = tmp_path / "a.jsonl"
    small = lines([{"text": "a", "n": value(n)} for n in (5, -7, 0)])
    large = lines([{"text": "a", "n": value(2**63)}])
    if kind == "shards":
        path.write_bytes(small)
        (tmp_path / "b.jsonl").write_bytes(large)
    else:
        path.write_bytes(small + b"{\n" + large)
    with pytest.raises(InvalidInput) as caught:
        open_corpus(str(tmp_path), tolerant=True)
    assert not isinstance(caught.value, DamagedShard)
    field = "n" if value(1) == 1 else "n.m"
    assert caught.value.problem == (
        f'Shard {path} has negative integers in field "{field}" (-7 for one), which elsewhere has '
        "integers beyond 2^63, and no type holds both."
    )
    assert caught.value.remedy == "Write the field as text in the JSONL, or the data as Parquet."


@pytest.mark.parametrize("large", [SIGNED, -SIGNED, BIG])
@pytest.mark.parametrize("names", ["ab", "ba"])
def test_shards_that_would_round_each_other_are_refused(tmp_path, large, names):
    path, other = (tmp_path / f"{name}.jsonl" for name in names)
    path.write_bytes(
        lines([{"text": "a", "n": n} for n in (0, 2**62, large, None, -(2**63))[: 4 + (large < 0)]])
    )
    other.write_bytes(lines([{"text": "a", "n": 1.5}]))
    with pytest.raises(InvalidInput) as caught:
        open_corpus(str(tmp_path))
    assert caught.value.problem == ROUNDED.format(path=path, name="n", one=large)


def test_lines_around_a_broken_one_would_round_each_other(tmp_path):
    path = tmp_path / "a.jsonl"
    whole = lines([{"text": "a", "n": SIGNED}]), b"{\n", lines([{"text": "a", "n": 1.5}])
    path.write_bytes(b"".join(whole))
    with pytest.raises(InvalidInput) as caught:
        open_corpus(str(path))
    assert caught.value.problem == ROUNDED.format(path=path, name="n", one=SIGNED)


def test_a_late_integer_that_would_be_rounded(tmp_path):
    """It lies behind the prefix that types are inferred from."""
    path = tmp_path / "a.jsonl"
    filler = {"text": "x" * 1_000_000, "n": 1.5, "m": [1.5]}
    late = [{**filler, "n": SIGNED}, {**filler, "m": [1.5, -SIGNED]}, {**filler, "n": 2**60}]
    path.write_bytes(lines([filler] * 18 + late + [filler]))
    rows, problems = read_with_problems(path)
    assert problems == {
        18: f'{SIGNED} in field "n" does not fit a double exactly',
        19: f'{-SIGNED} in field "m" does not fit a double exactly',
    }
    nothing = dict.fromkeys(filler)
    assert rows == [filler] * 18 + [nothing, nothing, {**filler, "n": 2.0**60}, filler]


INTEGERS = st.one_of(
    st.integers(-(2**66), 2**66), st.integers(2**63 - 2, 2**64 + 1), st.integers(-3, 3)
)


@settings(deadline=None)
@given(st.lists(st.one_of(INTEGERS, st.floats(-1e18, 1e18), st.none()), min_size=1, max_size=6))
def test_no_number_is_ever_another(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(lines([{"text": "a", "n": value} for value in values]))
    try:
        rows, problems = read_with_problems(path)
    except InvalidInput as refusal:
        assert "would be rounded" in refusal.problem
        return
    assert not problems
    assert [row["n"] for row in rows] == values


def read_with_problems(path, **options):
    """The rows of the one shard, and what was said of those that cannot be used."""
    corpus = open_corpus(str(path))
    problems = {}
    rows = read(corpus, on_bad=problems.__setitem__, **options)
    return rows, problems


@pytest.mark.parametrize(
    ("last", "problem"),
    [
        (b'{"text": "a", "n": "x"}', "JSON parse error: Column(/n) changed from number to string"),
        (b'{"text": "a", "z": 1}', 'field "z" is not in the first 16 MiB of any shard'),
        (b'{"text": "a", ', "JSON parse error: Missing a name for object member"),
    ],
)
def test_a_late_line_that_does_not_fit(tmp_path, last, problem):
    """It lies behind the prefix that types are inferred from."""
    path = tmp_path / "a.jsonl"
    filler = {"text": "x" * 1_000_000, "n": 1}
    path.write_bytes(lines([filler]) * 18 + last + b"\n" + lines([filler]))
    rows, problems = read_with_problems(path)
    assert list(problems) == [18]
    assert problems[18].startswith(problem)
    assert rows == [filler] * 18 + [{"text": None, "n": None}, filler]


DEEP = b'{"text": "a", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BROKEN = [
    b'{"text": ', b"[1]", b"null", b"null,", b" null", b"\xef\xbbnull", b'"text"', b"\x00",
    b"x" * 99, DEEP,
    b'{"text": "\xff"}', b'{"text": "\\ud800"}', b'{"\xff": 1}',
    b'{"text": "a", "meta": {"\xff": 1}}',
]  # fmt: skip


@pytest.mark.parametrize("line", BROKEN, ids=lambda line: line[:20])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_broken_line_at_the_start(tmp_path, line, place):
    path = tmp_path / "a.jsonl"
    good = [lines([record]) for record in RECORDS]
    path.write_bytes(b"".join([*good[:place], line + b"\n", *good[place:]]))
    rows, problems = read_with_problems(path, columns=["text"])
    assert list(problems) == [place]
    texts = [record["text"] for record in RECORDS]
    assert [row["text"] for row in rows] == [*texts[:place], None, *texts[place:]]


@pytest.mark.parametrize("line", [b"[1]", b"null", b"null,", b'"text"', b"1"])
def test_a_line_that_is_no_object(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + line + b"\n")
    assert read_with_problems(path)[1] == {1: "the line is not a JSON object"}


@pytest.mark.parametrize("filling", [b"%s", b'{"text": "]]]", "x": %s}'])
def test_values_nested_too_deep(tmp_path, filling):
    """Arrow's parser would end the process."""
    path = tmp_path / "a.jsonl"
    for depth, text in ((98, None), (101, "values are nested more than 100 deep")):
        value = b"[" * depth + b"]" * depth
        path.write_bytes(b'{"text": "[{", "n": %s}\n{"text": "b"}\n' % (filling % value))
        assert read_with_problems(path)[1] == ({0: text} if text else {})


def test_brackets_in_texts_do_not_count(tmp_path):
    path = tmp_path / "a.jsonl"
    texts = ["{[" * 200, '"{' * 200, '\\"[' * 200]
    path.write_bytes(lines([{"text": text} for text in texts]))
    rows, problems = read_with_problems(path)
    assert not problems
    assert [row["text"] for row in rows] == texts


@settings(deadline=None)
@given(broken=st.lists(st.booleans(), min_size=1, max_size=40))
def test_every_broken_line_is_told_of_and_no_other(tmp_path_factory, broken):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(
        b"".join(
            b'{"text": 1\n' if bad else b'{"text": "%d"}\n' % i for i, bad in enumerate(broken)
        )
    )
    if all(broken):
        with pytest.raises(DamagedShard, match=r"is not a readable JSONL file \("):
            open_corpus(str(path))
        return
    rows, problems = read_with_problems(path, batch_rows=3)
    assert sorted(problems) == [i for i, bad in enumerate(broken) if bad]
    assert [row["text"] for row in rows] == [
        None if bad else str(i) for i, bad in enumerate(broken)
    ]


def test_mostly_broken_lines_are_a_damaged_shard(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines([{"text": "a"}]) * 900 + b"{\n" * 5000)
    corpus = open_corpus(str(path))
    with pytest.raises(DamagedShard) as caught:
        read(corpus, on_bad=lambda row, problem: None)
    assert caught.value.problem == (
        f"Shard {path} is not a readable JSONL file (1,001 of its first 1,901 rows cannot be read)."
    )


def test_values_of_two_types_in_one_field(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines([{"text": "a", "n": 1}, {"text": "b", "n": "x"}]))
    with pytest.raises(InvalidInput) as caught:
        open_corpus(str(path))
    assert caught.value.problem == (
        f"Shard {path} has values of several types in one field "
        "(Unable to merge: Field n has incompatible types: int64 vs string)."
    )
    assert not isinstance(caught.value, DamagedShard)


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
