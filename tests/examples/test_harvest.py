"""The demo corpus: what `examples/harvest_python.py` promises, on the installation at hand."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

SCRIPT = Path(__file__).parents[2] / "examples" / "harvest_python.py"
MEGABYTES = 0.5


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("harvest_python", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


class Corpus:
    def __init__(self, folder: Path, summary: dict) -> None:
        self.folder = folder
        self.summary = summary
        self.shards = sorted((folder / "pool").iterdir())
        self.pool = [row for shard in self.shards for row in read(shard)]
        self.target = read(folder / "target.parquet")
        self.test = read(folder / "test.parquet")


def read(path: Path) -> list[dict[str, str]]:
    return pq.read_table(path).to_pylist()


def runs(rows: list[dict[str, str]]) -> set[tuple[str, ...]]:
    """All 13-word runs, counted apart from the script."""
    found = set()
    for row in rows:
        words = re.findall(r"\w+", row["text"].lower())
        found.update(zip(*(words[i:] for i in range(13)), strict=False))
    return found


def size(rows: list[dict[str, str]]) -> int:
    return sum(len(row["text"].encode()) for row in rows)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    return Corpus(folder, script.harvest(folder, megabytes=MEGABYTES, shards=5, seed=3))


def test_pool_has_the_shards_and_columns_asked_for(corpus: Corpus) -> None:
    assert [shard.name for shard in corpus.shards] == [f"shard-0000{n}.parquet" for n in range(5)]
    for path in [*corpus.shards, corpus.folder / "target.parquet", corpus.folder / "test.parquet"]:
        schema = pq.read_schema(path)
        assert schema.names == ["id", "text", "source", "path"]
        assert {str(column) for column in schema.types} == {"string"}
    assert {row["source"] for row in read(corpus.shards[0])} > {"stdlib-code"}, "not shuffled"


def test_pool_has_many_kinds_and_none_dominates(corpus: Corpus) -> None:
    kinds = {row["source"] for row in corpus.pool}
    assert len(kinds) >= 5
    for kind in kinds:
        share = size([row for row in corpus.pool if row["source"] == kind]) / size(corpus.pool)
        assert share <= 0.32, kind
        if kind in script.RELATED_KINDS:
            assert share <= 0.10, kind
    assert "docstrings" in kinds


def test_sizes(corpus: Corpus) -> None:
    assert 0.9 * MEGABYTES * 1e6 <= size(corpus.pool) <= MEGABYTES * 1e6
    assert all(200 <= len(row["text"]) <= 6000 for row in corpus.pool)
    assert all(200 <= len(row["text"]) <= 2000 for row in corpus.target + corpus.test)
    assert 0.5 < size(corpus.target) / size(corpus.test) < 2
    assert min(len(corpus.target), len(corpus.test)) > 50


def test_no_text_or_id_occurs_twice(corpus: Corpus) -> None:
    rows = corpus.pool + corpus.target + corpus.test
    assert len({row["text"] for row in rows}) == len({row["id"] for row in rows}) == len(rows)


def test_no_thirteen_words_in_common(corpus: Corpus) -> None:
    pool, target, test = runs(corpus.pool), runs(corpus.target), runs(corpus.test)
    assert not target & test
    assert not pool & target
    assert not pool & test


def test_target_is_split_by_topic(corpus: Corpus) -> None:
    topics = [{row["path"] for row in half} for half in (corpus.target, corpus.test)]
    assert topics[0].isdisjoint(topics[1])
    assert {row["source"] for row in corpus.target + corpus.test} == {"language-reference"}
    assert not any("pydoc_data" in row["path"] for row in corpus.pool)


def test_summary_counts_what_was_written(corpus: Corpus) -> None:
    assert corpus.summary["pool"] == {"documents": len(corpus.pool), "bytes": size(corpus.pool)}
    assert corpus.summary["target"]["documents"] == len(corpus.target)
    assert corpus.summary["test"]["bytes"] == size(corpus.test)
    counted = Counter(row["source"] for row in corpus.pool)
    assert counted == {kind: n["documents"] for kind, n in corpus.summary["kinds"].items()}


def test_a_second_process_writes_the_same_bytes(corpus: Corpus, tmp_path: Path) -> None:
    stale = tmp_path / "pool" / "shard-00099.parquet"
    stale.parent.mkdir()
    stale.write_bytes(b"left by an earlier harvest")
    arguments = [f"--megabytes={MEGABYTES}", "--shards=5", "--seed=3"]
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0].split() == ["kind", "documents", "megabytes"]
    assert not stale.exists()
    for path in [*corpus.shards, corpus.folder / "target.parquet", corpus.folder / "test.parquet"]:
        assert (tmp_path / path.relative_to(corpus.folder)).read_bytes() == path.read_bytes()


def test_seed_picks_the_pool_and_leaves_the_target(corpus: Corpus, tmp_path: Path) -> None:
    other = Corpus(tmp_path, script.harvest(tmp_path, megabytes=0.2, seed=4))
    assert len(other.shards) == 4
    assert size(other.pool) <= 0.2e6
    assert (other.target, other.test) == (corpus.target, corpus.test)
    known = {row["id"] for row in corpus.pool}
    assert sum(row["id"] in known for row in other.pool) < len(other.pool) / 2


@given(st.text(st.sampled_from("ab\n é"), max_size=300), st.integers(1, 40))
def test_pieces_are_the_lines_of_the_text(text: str, repeats: int) -> None:
    whole = (text + "\n") * repeats
    lines = Counter(whole.split("\n"))
    for piece in script.cut_lines(whole):
        assert 200 <= len(piece) <= 6000
        assert piece in whole
        assert not Counter(piece.split("\n")) - lines


def test_docstrings_come_from_the_source_alone() -> None:
    prose = " ".join(["A paragraph of prose."] * 12)
    source = f'raise SystemExit\ndef f():\n    """{prose}"""\ndef g():\n    """Short."""\n'
    assert list(script.docstrings(source)) == [prose]
    assert list(script.docstrings("print 'Python 2'")) == []


def test_how_an_environment_was_made_does_not_show_in_its_records() -> None:
    files = "".join(f"some_package/module_{i}.py,sha256=abc{i},123\n" for i in range(30))
    compiled = "some_package/__pycache__/module_0.cpython-311.pyc,,\n"
    ours, theirs = (
        f"../../../bin/tool,sha256={script_digest},220\n{files}{extra}"
        for script_digest, extra in (("x", compiled), ("y", ""))
    )
    assert list(script._records(ours)) == list(script._records(theirs)) != []


@pytest.mark.parametrize("content", [b"\xff\xfe not UTF-8", b"a NUL \0 byte", None])
def test_unreadable_files_are_skipped(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.py").write_bytes(content)
    assert script._read(script.Found("site", tmp_path, "a.py")) is None


def test_impossible_arguments_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([str(tmp_path / "corpus"), "--shards=0"]) == 1
    assert "megabytes and shards must be positive" in capsys.readouterr().err
    assert not (tmp_path / "corpus").exists()
