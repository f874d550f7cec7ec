"""`curate verify` on sound runs: what it says, what it leaves out, and how it ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_helpers import (
    Run,
    curate,
    run_tiny,
    shared_run,
    snapshot,
    write_plain_pool,
)
from test_run_tokens import OTHERS, PUBLISHED
from verification_helpers import change_manifest, cover_up, found, sentences

import curate as package
from curate.errors import InvalidInput
from curate.files import json_text
from curate.read.corpus import open_corpus
from curate.verification import verify
from curate.verification.parts import Part, choose_groups

BY_TOKEN = {"published": PUBLISHED, **OTHERS}
LEFT_OUT = "\nEverything that was checked holds; not checked: source.\n"


def lines_of(run: Run, *arguments: str) -> list[str]:
    result = curate("verify", run.out, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


# Sound runs.


def test_every_method_writes_what_verifies(finished: Run) -> None:
    before = snapshot(finished.out)
    assert sentences(finished) == []
    assert snapshot(finished.out) == before


@pytest.mark.parametrize("name", BY_TOKEN)
def test_every_method_by_token(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    done = found(shared_run(tmp_path_factory, **BY_TOKEN[name]))
    assert done.holds, done.findings
    tokens = next(check for check in done.checks if check.name == "tokens")
    assert tokens.checked.endswith("masks against state/")


def test_what_it_prints(by_document: Run) -> None:
    documents, decisions, rounds, kept = by_document.sql(
        "SELECT (SELECT count(*) FROM document), (SELECT count(*) FROM decision), "
        "(SELECT count(*) FROM round), (SELECT count(*) FROM kept)"
    )[0]
    parts = len(by_document.parts())
    names = json.loads((by_document.out / "manifest.json").read_text())["files"]
    size = sum((by_document.out / name).stat().st_size for name in names)
    rows = f"{kept} of {kept} rows, {parts} of {parts} row groups"
    expected = {
        "check": "checked",
        "manifest": "1 file",
        "files": f"9 of 9 files whole, {size:,} bytes",
        "settings": "config.yaml, the log",
        "log": f"{documents} documents, {decisions} decisions, {rounds} rounds",
        "parts": f"{parts} of {parts} parts, {kept} rows",
        "outcome": rows,
        "source": rows,
    }
    lines = lines_of(by_document, "--full")
    for line, (name, checked) in zip(lines, expected.items(), strict=False):
        assert line.split("  ", 1)[0].strip() == name
        words = line.removeprefix(name).split("  ")
        assert [word.strip() for word in words if word.strip()] == [
            checked,
            "result" if name == "check" else "holds",
        ]
    assert lines[len(expected) :] == ["", "Everything that was checked holds."]


def test_json(by_document: Run) -> None:
    tree = json.loads("\n".join(lines_of(by_document, "--format", "json")))
    assert (tree["holds"], tree["full"], tree["findings"], tree["more"]) == (True, False, [], 0)
    names = ["manifest", "files", "settings", "log", "parts", "outcome", "source"]
    assert [check["name"] for check in tree["checks"]] == names
    assert {check["result"] for check in tree["checks"]} == {"holds"}


def test_from_python(by_document: Run) -> None:
    done = package.verify(by_document.out, full=True)
    assert isinstance(done, package.Verification)
    assert (done.holds, done.full, done.findings) == (True, True, ())


def test_after_an_evaluation_the_manifest_is_sealed_anew(by_document: Run, tmp_path: Path) -> None:
    """A later verb records its files, as `curate evaluate` does."""
    from curate.log.evaluation import write_evaluation
    from curate.log.schema import EVALUATION
    from curate.pipeline.folder import RunFolder

    run = by_document.copy(tmp_path / "out")
    (run.out / "evaluation.json").write_text("{}")
    row = {column.name: 0 for column in EVALUATION.columns}
    write_evaluation(run.log, [{**row, "arm": "curated"}])
    assert sentences(run) == [
        "selection_log.duckdb was changed: its SHA-256 is not the recorded one.",
        "evaluation.json was added: it is not recorded in manifest.json.",
    ]
    RunFolder.open_finished(run.out).record_files([run.log, run.out / "evaluation.json"])
    assert sentences(run) == []
    (run.out / "evaluation.json").write_text("{} ")
    assert sentences(run) == [
        "evaluation.json was changed: its SHA-256 is not the recorded one.",
    ]


def test_a_manifest_without_a_seal_is_verified_without_it(by_document: Run, tmp_path: Path) -> None:
    run = by_document.copy(tmp_path / "out")
    path = run.out / "manifest.json"
    tree = json.loads(path.read_text())
    del tree["sha256"]
    path.write_text(json_text(tree))
    line = lines_of(run, "--full")[1]
    assert "1 file, of a version that gave it no SHA-256 of its own" in line
    path.write_text(json.dumps(tree))
    assert sentences(run) == ["manifest.json was changed: curate lays out its text otherwise."]


# The sample.


def test_the_sample_is_a_function_of_the_seed() -> None:
    parts = [Part(Path(), "", shard, (), (10, 10, 3)) for shard in range(40)]
    chosen = [choose_groups(parts, seed, full=False) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert [len(one) for one in chosen] == [8, 8, 8]
    places = [(one.part.shard_id, one.index) for one in chosen[0]]
    assert places == sorted(set(places))
    assert all(one.first_row == 10 * one.index for one in chosen[0])
    assert len(choose_groups(parts, 0, full=True)) == 120


def test_a_sample_says_its_size(tmp_path: Path) -> None:
    """Many row groups: eight are looked at, and rows of them taken at their places."""
    inputs = write_plain_pool(tmp_path / "in", shards=2, rows=15)
    settings = {"write__row_group_rows": 1, "method": "random", "keep": 0.9}
    run = run_tiny(inputs, tmp_path / "out", **settings)
    (kept,) = run.sql("SELECT count(*) FROM kept")[0]
    assert kept > 20
    rows = f"8 of {kept} rows, 8 of {kept} row groups"
    for line in lines_of(run)[6:8]:
        assert rows in line
    rows = f"{kept} of {kept} rows, {kept} of {kept} row groups"
    for line in lines_of(run, "--full")[6:8]:
        assert rows in line


def test_metadata_that_is_not_utf_8_is_as_it_was(tmp_path: Path) -> None:
    inputs = write_plain_pool(tmp_path / "in", shards=1)
    shard = inputs / "pool" / "0.parquet"
    table = pq.read_table(shard)
    data = pa.array([b"ok", b"caf\xe9", b"x"] * 5, pa.binary())
    strings = pa.Array.from_buffers(pa.string(), len(data), data.buffers())
    coded = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2] * 5, pa.int32()), strings.slice(0, 3))
    table = table.append_column("s", strings).append_column("coded", coded)
    pq.write_table(table.append_column("view", strings.cast(pa.string_view())), shard)
    run = run_tiny(inputs, tmp_path / "out", method="random", keep=0.9)
    assert sentences(run) == []
    seen = {row[0] for row in run.sql("SELECT DISTINCT unnest([s, coded, view]) FROM document")}
    assert seen == {"ok", "caf\N{REPLACEMENT CHARACTER}", "x"}


# The pool.


def test_a_pool_that_is_gone(by_document: Run, tmp_path: Path) -> None:
    """Nothing is wrong with the output, but what could not be looked at is no success."""
    inputs = tmp_path / "in"
    shutil.copytree(by_document.inputs, inputs)
    run = run_tiny(inputs, tmp_path / "out", method="random")
    (inputs / "pool").rename(tmp_path / "moved")
    finding = (
        f"The pool path does not exist: {inputs / 'pool'}, so no row was held against the pool: "
        "say with --pool where the run's pool lies now, or leave it out with --no-source."
    )
    assert sentences(run) == [finding]
    result = curate("verify", run.out)
    assert result.exit_code == 1
    assert result.stdout.endswith(f"\n1 finding:\n- {finding}\n")
    assert "source    nothing" in result.stdout
    assert "fails: the run's pool was not found" in result.stdout
    assert sentences(run, pool=str(tmp_path / "moved")) == []
    result = curate("verify", run.out, "--no-source")
    assert (result.exit_code, result.stdout.endswith(LEFT_OUT)) == (0, True)
    assert "not checked: the pool was left out" in result.stdout


def test_a_changed_pool(by_document: Run, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    shutil.copytree(by_document.inputs / "pool", pool)
    shard = pool / "shard-1.parquet"
    pq.write_table(pq.read_table(shard).slice(1), shard)
    assert sentences(by_document, pool=str(pool)) == [
        f"The pool's shard 1 ({shard}) is not what the run read.",
    ]
    shard.unlink()
    assert sentences(by_document, pool=str(pool)) == [
        "The pool has 2 shards, but the run's had 3: say with --pool where the run's pool lies "
        "now, or leave it out with --no-source.",
    ]


def test_a_pool_that_changed_in_its_middle(tmp_path: Path) -> None:
    """Fingerprints are of the size and both ends; the replay sees the rest."""
    inputs = tmp_path / "in"
    (inputs / "pool").mkdir(parents=True)
    lines = [f'{{"text": "{row:04d} {"word " * 60}"}}\n' for row in range(1000)]
    path = inputs / "pool" / "0.jsonl"
    path.write_text("".join(lines))
    pq.write_table(pa.table({"text": ["word 0500"] * 9}), inputs / "target.parquet")
    run = run_tiny(inputs, tmp_path / "out", method="random", keep=1.0)
    assert sentences(run) == []
    path.write_text("".join([*lines[:500], lines[500].replace("0500", "0501"), *lines[501:]]))
    assert sentences(run) == [
        'data/part-00000.parquet: column "text" differs from the pool in 1 row, first in row 500 '
        "(document 0:500).",
    ]


def test_a_pool_that_cannot_be_read_to_its_end(tmp_path: Path) -> None:
    inputs = write_plain_pool(tmp_path / "in", shards=1)
    run = run_tiny(inputs, tmp_path / "out", method="random", keep=1.0)
    path = inputs / "pool" / "0.parquet"
    pq.write_table(pq.read_table(path).slice(0, 9), path)

    shard = open_corpus(str(path)).shards[0]
    now = {"bytes": shard.bytes, "fingerprint": shard.fingerprint}
    change_manifest(run, lambda tree: tree["pool"][0].update(now))
    found = sentences(run)
    assert found[0] == f"The pool's shard 0 ({path}) has 9 rows, but the run read 15."
    assert found[-1] == (
        f"data/part-00000.parquet was not replayed to its end: Shard {path} has no row 9."
    )


# Bad use.


def test_no_run(tmp_path: Path) -> None:
    result = curate("verify", tmp_path / "nothing")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"Error: There is no finished run in {tmp_path / 'nothing'}.\n"
        "To fix: Give the output folder of a finished curate run.\n"
    )


def test_an_unfinished_run(by_document: Run, tmp_path: Path) -> None:
    run = by_document.copy(tmp_path / "out")
    change_manifest(run, lambda tree: tree["stages"].pop("complete"))
    assert curate("verify", run.out).exit_code == 2
    change_manifest(run, lambda tree: tree.update(format_version=2))
    with pytest.raises(InvalidInput, match="was not written by this version of curate"):
        verify(run.out)


def test_pool_and_no_source(by_document: Run) -> None:
    result = curate("verify", by_document.out, "--pool", "x", "--no-source")
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: --pool says where to read the pool and --no-source not to read it.\n"
        "To fix: Leave one of them out.\n"
    )


def test_findings_are_bounded(by_document: Run, tmp_path: Path) -> None:
    run = by_document.copy(tmp_path / "out")
    for number in range(25):
        (run.out / "data" / f"x{number:02d}\n.txt").write_text("")
    result = curate("verify", run.out)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    start = lines.index("25 findings:")
    assert lines[start + 1] == r"- data/x00\n.txt was added: it is not recorded in manifest.json."
    assert len(lines) == start + 22
    assert lines[-1] == "- and 5 more (the first 20 are shown)."
    cover_up(run)
    assert r"data/x00" in sentences(run)[0]
