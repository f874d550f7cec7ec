"""Runs at token granularity, from the command's outputs alone; and trainers that read them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from run_helpers import (
    COMPARABLE,
    Run,
    curate,
    digest,
    run_arguments,
    run_tiny,
    shared_run,
    write_plain_pool,
    write_pool,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from curate.records import TOKEN_COLUMNS

EXAMPLES = Path(__file__).parents[1] / "examples"
PUBLISHED = {
    "granularity": "token",
    "keep": 0.6,
    "blade.lambda": 1.0,
    "blade__control": "proxy",
    "blade__train_on": "kept",
    "blade__reference_schedule": "constant",
}
OTHERS = {
    "lookahead": {**PUBLISHED, "blade__control": "lookahead"},
    "passes": {
        **PUBLISHED,
        "blade__passes": 2,
        "blade__average": "last",
        "blade__final": "rescore",
    },
    "color": {"granularity": "token", "keep": 0.6, "method": "color"},
    "rho1": {"granularity": "token", "keep": 0.6, "method": "rho1"},
    "random": {"granularity": "token", "keep": 0.6, "method": "random"},
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return shared_run(tmp_path_factory, **PUBLISHED)


@pytest.fixture(scope="module", params=["published", *OTHERS])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return shared_run(tmp_path_factory, **OTHERS.get(request.param, PUBLISHED))


def test_masks_fit_their_documents_and_the_budget(finished: Run) -> None:
    tokenizer = AutoTokenizer.from_pretrained(finished.out / "tokenizer")
    logged = {
        row[0]: row[1:]
        for row in finished.sql(
            "SELECT document_id, tokens, tokens_kept, weight, kept FROM document"
        )
    }
    seen = 0
    for path in finished.parts():
        shard = int(path.stem.removeprefix("part-"))
        ids = finished.sql(
            "SELECT document_id FROM document WHERE kept AND shard_id = ? ORDER BY row".replace(
                "?", str(shard)
            )
        )
        rows = pq.read_table(path, columns=["text", "input_ids", "loss_mask", "curate_weight"])
        for (document,), row in zip(ids, rows.to_pylist(), strict=True):
            tokens, kept, weight, _ = logged[document]
            assert tokenizer.decode(row["input_ids"]) == row["text"]
            assert len(row["input_ids"]) == len(row["loss_mask"]) == tokens
            assert sum(row["loss_mask"]) == kept > 0
            assert row["curate_weight"] == weight == np.float32(kept / tokens)
            seen += kept
    (pool, kept, rounds) = finished.sql(
        "SELECT pool_tokens, kept_tokens, (SELECT count(*) FROM round) FROM run"
    )[0]
    assert seen == kept == sum(row[1] for row in logged.values())
    assert abs(kept - 0.6 * pool) <= rounds
    assert all((row[1] > 0) == row[3] for row in logged.values())


def test_the_columns_of_the_pool_are_unchanged(published: Run) -> None:
    columns = ", ".join(f'p."{name}"' for name in COMPARABLE)
    place = str(published.inputs / "pool" / "*.parquet")
    with duckdb.connect() as database:
        database.execute(f"ATTACH '{published.log}' AS log (READ_ONLY)")
        pool = database.sql(
            f"SELECT {columns} FROM read_parquet('{place}', file_row_number = true) AS p "
            "JOIN log.document AS d ON d.row = p.file_row_number "
            "AND d.shard_id = regexp_extract(p.filename, '(\\d+).parquet', 1)::INTEGER "
            "WHERE d.kept ORDER BY d.document_id"
        ).to_arrow_table()
    parts = pa.concat_tables([pq.read_table(path) for path in published.parts()])
    assert parts.select(COMPARABLE).num_rows == pool.num_rows
    for name in ("id", "text", "price", "blob"):
        assert parts[name].to_pylist() == pool[name].to_pylist()
    assert parts.schema.names[-2:] == [field.name for field in TOKEN_COLUMNS]


def test_load_dataset_reads_masks(published: Run, tmp_path: Path) -> None:
    rows = load_dataset(str(published.out), split="train", cache_dir=str(tmp_path))
    assert len(rows) == published.sql("SELECT count(*) FROM kept")[0][0]
    assert all(len(row["input_ids"]) == len(row["loss_mask"]) for row in rows)


def test_the_tokenizer_lies_beside_the_data_with_its_hash(published: Run) -> None:
    files = json.loads((published.out / "manifest.json").read_text())["files"]
    names = [name for name in files if name.startswith("tokenizer/")]
    assert "tokenizer/tokenizer.json" in names
    for name in names:
        data = (published.out / name).read_bytes()
        assert files[name] == hashlib.sha256(data).hexdigest()
    card = (published.out / "README.md").read_text()
    assert "`loss_mask`" in card
    assert "tokenizer/" in card
    assert "The mean over kept tokens is 1" not in card


def test_why_holds_tokens_against_the_cut_off_of_tokens(published: Run) -> None:
    """A document's score is a mean, which may lie below the cut-off that its tokens are above."""
    below = "SELECT document_id FROM decision WHERE kept AND score < threshold LIMIT 1"
    ((document,),) = published.sql(below)
    ((score, cut_off, kept, tokens),) = published.sql(
        f"SELECT score, threshold, tokens_kept, tokens FROM decision WHERE document_id = {document}"
    )
    share, said = kept / tokens, curate("log", str(published.out), "--why", str(document)).output
    assert (
        f"; mean score {score:.4g}; {kept} of its {tokens} tokens at or above the cut-off "
        f"{cut_off:.4g}: kept in this round.\nKept with weight {share:.4g} (the share of its "
        "tokens that are labels): kept in 1 of 1 round, and inside the token budget."
    ) in said
    assert "Near the cut-off" not in (published.out / "report.html").read_text()


def test_equal_seeds_give_equal_bytes(published: Run, tmp_path: Path) -> None:
    again = run_tiny(published.inputs, tmp_path / "again", **PUBLISHED)
    assert [digest(path) for path in again.parts()] == [digest(p) for p in published.parts()]
    query = "FROM decision ORDER BY ALL"
    assert again.sql(query) == published.sql(query)


def test_a_later_visit_replaces_an_earlier_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    run = shared_run(tmp_path_factory, **OTHERS["passes"])
    assert not run.sql(
        """
        SELECT document_id FROM document JOIN (
            SELECT document_id, arg_max(tokens_kept, round) AS last FROM decision GROUP BY ALL
        ) USING (document_id) WHERE tokens_kept <> last
        """
    )


def test_several_visits_need_the_last_decision(tmp_path: Path) -> None:
    write_pool(tmp_path)
    arguments = ["--pool", tmp_path / "pool", "--target", tmp_path / "target.parquet"]
    result = curate(
        "run", *arguments, "--out", tmp_path / "out", "--granularity", "token",
        "--set", "blade.passes=2",
    )  # fmt: skip
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: At token granularity the last decision about a token stands, but blade.average is "
        "uniform and every document is visited 2 times.\n"
        "To fix: Set blade.average to last.\n"
    )


def test_weights_of_tokens_are_not_repetition(published: Run, tmp_path: Path) -> None:
    to = ["--to", "parquet", "--dest", tmp_path / "dest"]
    result = curate("export", published.out, *to, "--materialize")
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: The run kept tokens, not documents, so no document is to be repeated.\n"
        "To fix: Export without --materialize, and train on the tokens that loss_mask marks.\n"
    )
    assert curate("export", published.out, *to).exit_code == 0


def test_the_published_recipe_is_this_run() -> None:
    recipe = yaml.safe_load((EXAMPLES.parent / "pipelines" / "blade-published.yaml").read_text())
    blade = recipe["blade"]
    assert (recipe["granularity"], recipe["keep"]) == ("token", 0.6)
    assert (blade["control"], blade["lambda"], blade["train_on"]) == ("proxy", 1.0, "kept")
    assert (blade["average"], blade["final"]) == ("last", "none")


# The examples that train on the output.


def run_example(name: str, run: Run, dest: Path) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, run.out, dest, "--window", "32", "--steps", "3"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(dest / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    AutoModelForCausalLM.from_pretrained(dest)
    AutoTokenizer.from_pretrained(dest)
    return done.stdout.splitlines()[-1]


def test_train_with_masks(published: Run, tmp_path: Path) -> None:
    last = run_example("train_with_masks.py", published, tmp_path)
    assert last.startswith("final loss ")


def test_masks_become_labels(published: Run) -> None:
    sys.path.insert(0, str(EXAMPLES))
    try:
        from train_with_masks import masked_dataset
    finally:
        sys.path.remove(str(EXAMPLES))
    examples = masked_dataset(str(published.out), 0, 8)
    kept = published.sql("SELECT sum(tokens_kept) FROM document")[0][0]
    assert sum(label != -100 for row in examples for label in row["labels"]) == kept
    for row in examples:
        assert row["input_ids"][0] == 0
        assert row["labels"][0] == -100
        pairs = zip(row["input_ids"], row["labels"], strict=True)
        assert all(label in (-100, token) for token, label in pairs)


def test_train_with_weights(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """With a tokenizer that has no pad token, as some pretrained ones have none."""
    run = shared_run(tmp_path_factory).copy(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(run.out / "tokenizer")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(run.out / "tokenizer")
    assert AutoTokenizer.from_pretrained(run.out / "tokenizer").pad_token is None
    assert run_example("train_with_weights.py", run, tmp_path / "model").startswith("final loss ")


@pytest.mark.parametrize("settings", [{}, {"method": "random"}], ids=["blade", "random"])
def test_a_budget_that_keeps_no_token_is_said(tmp_path: Path, settings: dict[str, str]) -> None:
    inputs, out = write_plain_pool(tmp_path), tmp_path / "out"
    settings = {"granularity": "token", "keep": "1e-7", "blade__control": "proxy", **settings}
    for _ in range(2):  # the same again
        result = curate(*run_arguments(inputs, out, **settings))
        assert result.exit_code == 2, result.exception
        assert re.search(
            r"Error: The budget keeps no token: keep is 1e-07 and the pool has [\d,]+ tokens\.\n"
            r"To fix: Give a larger --keep or a larger pool, and another folder with --out\.\n$",
            result.stderr,
        )
    kept = run_tiny(inputs, tmp_path / "document", keep="1e-7", method="random")
    assert kept.sql("SELECT kept_documents FROM run") == [(1,)]
