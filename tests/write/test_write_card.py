"""The card says what the run did, loads the data, and lets no data speak as markup."""

from __future__ import annotations

from pathlib import Path

import datasets
import duckdb
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from test_write_parts import numbered, pool_table, selection_of

from curate.log.query import connect_file
from curate.write.card import fenced, markdown_text, public_config, write_card
from curate.write.parts import write_part


def test_card_states_the_run(make_log, tmp_path: Path):
    write_card(tmp_path / "README.md", make_log(documents=1500))
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "configs": [{"config_name": "default", "data_files": "data/*.parquet"}],
        "size_categories": ["n<1K"],
        "tags": ["curate", "data-selection"],
    }
    for words in ("| pool | 1,500 |", "Method blade", "seed 3", "asked for: 20.00%", "maths"):
        assert words in body
    for column in ("curate_weight", "curate_score", "curate_excess_loss", "curate_round"):
        assert f"| `{column}` |" in body
    assert "It is not\nproof" in body
    assert "/home/somebody" not in text


def test_same_log_gives_same_bytes(make_log, tmp_path: Path):
    log = make_log()
    for name in ("a.md", "b.md"):
        write_card(tmp_path / name, log)
    assert (tmp_path / "a.md").read_bytes() == (tmp_path / "b.md").read_bytes()


def test_card_of_a_run_without_models_or_metadata(make_log, tmp_path: Path):
    log = make_log(models=False, rounds=1, metadata={}, run={"target_documents": None})
    write_card(tmp_path / "README.md", log)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "## Kept by" not in text
    assert "FROM document LIMIT 10" in text


def test_suggested_query_runs(make_log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_card(tmp_path / "README.md", make_log())
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\nimport duckdb", 1)[1].split("```", 1)[0]
    assert "keep_rate_by_source" in code
    monkeypatch.chdir(tmp_path)
    exec("import duckdb" + code, {})


def test_folder_with_card_loads(make_log, tmp_path: Path):
    out = tmp_path / "out"
    write_card(out / "README.md", make_log())
    (out / "manifest.json").write_text('{"not": "data"}')
    table = pool_table(20).select(["text", "flag"])
    part = out / "data" / "part-00000.parquet"
    write_part(part, table.schema, numbered(table, 5), selection_of([1, 4, 7]).to_batches())
    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["text"] == ["document 1", "document 4", "document 7"]


def test_log_is_opened_without_reach(make_log, tmp_path: Path):
    (tmp_path / "secret.csv").write_text("a\n1\n")
    with connect_file(make_log()) as connection:
        with pytest.raises(duckdb.Error):
            connection.execute(f"FROM read_csv('{tmp_path / 'secret.csv'}')")
        with pytest.raises(duckdb.Error):
            connection.execute("DELETE FROM document")


_MARKUP = """<script> | ` ``` \\ * _ ~~ [a](http://b) ![x](y) <!-- &lt; # - 1. http://c.d $ ---"""
_PIECES = [*_MARKUP.split(" "), " ", "\n", "\u202e", "\x00"]
_HOSTILE = st.text() | st.lists(st.sampled_from(_PIECES)).map("".join)


@given(_HOSTILE)
def test_hostile_text_renders_as_itself(text: str):
    cell = markdown_text(text)
    page = MarkdownIt("gfm-like", {"linkify": False}).parse(
        f"| a | b |\n|---|---|\n| x | {cell} |\n"
    )
    kinds = {child.type for token in page for child in token.children or ()}
    assert kinds <= {"text", "text_special"}
    assert sum(token.type == "td_open" for token in page) == 2
    assert "\n" not in cell


@given(_HOSTILE)
def test_no_text_closes_its_fence(text: str):
    page = MarkdownIt().parse(fenced(text, "yaml"))
    assert [token.type for token in page] == ["fence"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/data/secret place/pool", "pool"),
        ("C:\\Users\\me\\pool.parquet", "pool.parquet"),
        ("~/pool", "pool"),
        ("file:///srv/pool/*.parquet", "*.parquet"),
        ("https://me:key@host.org/a/b.parquet?token=abc#x", "https://host.org/a/b.parquet"),
        ("s3://bucket/pool/", "s3://bucket/pool/"),
        ("hf:owner/name", "hf:owner/name"),
        ("pool/*.parquet", "pool/*.parquet"),
        ("tiny", "tiny"),
    ],
)
def test_config_shows_no_folders_and_no_secrets(value: str, shown: str):
    import json

    text = public_config(json.dumps({"pool": value, "nested": {"list": [value, 1]}}))
    assert yaml.safe_load(text) == {"pool": shown, "nested": {"list": [shown, 1]}}


def test_a_stage_that_started_over_is_told_as_text(make_log, tmp_path: Path):
    gone_back = [{"stage": "<b>|warm-up", "problem": "It broke."}]
    write_card(tmp_path / "README.md", make_log(run={"rollbacks": gone_back}))
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    sentence = "Learning rates were halved once after a loss or score that was not finite, in "
    assert f"\n\n{sentence}&lt;b&gt;\\|warm-up.\n" in text
