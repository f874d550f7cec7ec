"""What must hold of a config file or a shard that can hold any bytes, for tests and fuzzers.

Each check takes the bytes and a folder to write in. It returns whether they were of use, and
raises only what is a bug: nothing but a `CurateError` of two sentences may leave the product.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from run_helpers import rich_table

from curate.config.load import config_to_yaml, load_config
from curate.errors import CurateError
from curate.read.corpus import open_corpus

REQUIRED = {"pool": "pool", "target": "target.parquet", "out": "out"}
ASSIGNMENT = b"\x00"
"""In the bytes of a config: what follows is one `--set`, up to the next."""


def check_config(data: bytes, place: Path) -> bool:
    """A config file with assignments loads and writes back equal, or is refused."""
    body, *assignments = data.split(ASSIGNMENT)
    path, again = place / "config.yaml", place / "again.yaml"
    path.write_bytes(body)
    given = [one.decode("utf-8", "replace") for one in assignments]
    try:
        config = load_config(path, REQUIRED, given)
    except CurateError as error:
        return _refused(error)
    again.write_text(config_to_yaml(config), encoding="utf-8")
    assert load_config(again) == config
    return True


def check_jsonl(data: bytes, place: Path) -> bool:
    """A plain JSONL shard is read in full, each row good or bad, or is refused."""
    return _check_shard(data, place / "shard.jsonl")


def check_gzip(data: bytes, place: Path) -> bool:
    """The same of a gzip file, whose bytes these are."""
    return _check_shard(data, place / "shard.jsonl.gz")


def check_parquet(data: bytes, place: Path) -> bool:
    """The same of a Parquet file."""
    return _check_shard(data, place / "shard.parquet")


def _check_shard(data: bytes, path: Path) -> bool:
    path.write_bytes(data)
    try:
        corpus = open_corpus(str(path), tolerant=True)
        shard = corpus.shards[0]
        assert shard.damage is None, "a corpus without a sound shard"
        bad: list[int] = []
        whole = [
            batch
            for _, batch in corpus.iter_batches(shard, on_bad=lambda row, problem: bad.append(row))
        ]
        texts = [
            batch.column(0)
            for _, batch in corpus.iter_batches(shard, [corpus.text_column], batch_rows=3)
        ]
    except CurateError as error:
        return _refused(error)
    rows = sum(batch.num_rows for batch in whole)
    assert shard.rows in (None, rows)
    assert sum(map(len, texts)) == rows
    assert all(batch.schema.equals(corpus.schema) for batch in whole)
    assert sorted(set(bad)) == bad
    assert not bad or bad[-1] < rows
    texts_again = [batch.column(corpus.text_column) for batch in whole]
    if rows:
        kind = corpus.schema.field(corpus.text_column).type
        assert pa.chunked_array(texts, kind).equals(pa.chunked_array(texts_again, kind))
        column = pa.chunked_array(texts_again, kind)
        assert all(column[row].as_py() is None for row in bad)
    return True


def _refused(error: CurateError) -> bool:
    assert error.problem.endswith("."), error.problem
    assert error.remedy.endswith((".", "?")), error.remedy
    return False


@dataclass(frozen=True)
class Target:
    """What is fuzzed: a check, inputs to start from, and words of the format."""

    check: Callable[[bytes, Path], bool]
    sound: tuple[bytes, ...]
    refused: tuple[bytes, ...]
    words: tuple[bytes, ...]

    @property
    def seeds(self) -> tuple[bytes, ...]:
        """All inputs to start from."""
        return self.sound + self.refused


def _config_seeds() -> tuple[bytes, ...]:
    whole = config_to_yaml(load_config(None, REQUIRED)).encode()
    plain = b"\n".join(line for line in whole.splitlines() if b"#" not in line or b":" in line)
    return (
        plain,
        b"keep: 0.3\nseed: 7\nmethod: dsir\nmetadata_columns: [a, b]\n",
        b"blade:\n  lambda: 1e-1\n  passes: 2\n  control: proxy\ntrain: {batch_tokens: 4096}\n",
        b"model:\n  name: nano\n  window: 64\n\x00train.learning_rate=1e-3\x00keep=.5",
    )


_NO_CONFIG = b"a: &x [1, 2]\nb: *x\n? c\n: !!str d\n--- |\n  text\n"


_RECORDS = (
    {"text": "river stone", "id": 1, "source": "web"},
    {"text": "Gr\u00fc\u00dfe \U0001f642", "id": 2.5, "meta": {"tags": ["a", None], "n": 1}},
    {"text": "", "id": None, "when": "2024-03-30T23:30:00Z", "flag": True, "big": 2**63},
    {"text": None, "meta": {"tags": []}, "list": [[1], []]},
)


def _jsonl_seeds() -> tuple[bytes, ...]:
    lines = [json.dumps(one).encode() for one in _RECORDS]
    unescaped = json.dumps(_RECORDS[1], ensure_ascii=False).encode()
    return (
        b"\n".join(lines) + b"\n",
        lines[0] + b"\r\n\r\n" + unescaped + b"\n",
        b"\xef\xbb\xbf" + lines[0] + b"\n{broken\n" + lines[0],
        b'{"text": "\\ud83d\\ude42 \\u0000"}\n{"text": "\xff"}\n[1]\n"text"\n1\nnull\n',
    )


_TYPES_DIFFER = b'{"text": "river stone", "id": 1}\n{"text": 3, "id": "x", "new": 1}'


def _gzip(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, "gzip", asbytes=True)
    return packed


def _parquet_seeds() -> tuple[bytes, ...]:
    seeds = []
    simple = pa.table({"text": ["river", None, "stone", ""], "id": [1, 2, None, 4]})
    nested = rich_table(1, 12).select(["text", "source", "meta", "scores", "day"])
    for table, options in (
        (simple, {"compression": "none", "write_page_checksum": True}),
        (simple, {"compression": "zstd", "row_group_size": 2, "store_schema": False}),
        (simple, {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"}),
        (nested, {"compression": "snappy", "row_group_size": 5}),
        (simple.slice(0, 0), {}),
    ):
        sink = io.BytesIO()
        pq.write_table(table, sink, **options)
        seeds.append(sink.getvalue())
    return tuple(seeds)


_JSON_WORDS = (
    b'{"text": "',
    b'"}',
    b'"id": ',
    b"null",
    b"true",
    b"\\u",
    b"\\ud800",
    b"1e999",
    b"\n",
)
_YAML_WORDS = (
    b"blade:", b"lambda:", b"model:", b"train:", b"compute:", b"keep:", b"seed:", b"<<:",
    b"!!python/object:", b"!!int", b"!!float", b"!!timestamp", b"!!binary", b"!!set", b"!!omap",
    b"metadata_columns:", b"2024-01-01", b".inf", b".nan", b"0x1F", b"0o7", b"1:30", b"&a", b"*a",
    b"~", b"{}", b"[]", b"---",
)  # fmt: skip

TARGETS: dict[str, Callable[[], Target]] = {
    "config": lambda: Target(check_config, _config_seeds(), (_NO_CONFIG,), _YAML_WORDS),
    "jsonl": lambda: Target(check_jsonl, _jsonl_seeds(), (_TYPES_DIFFER,), _JSON_WORDS),
    "gzip": lambda: Target(
        check_gzip,
        tuple(map(_gzip, _jsonl_seeds())),
        (_gzip(_TYPES_DIFFER), _gzip(b"\n" * 300)),
        (),
    ),
    "parquet": lambda: Target(check_parquet, _parquet_seeds(), (), (b"PAR1",)),
}
