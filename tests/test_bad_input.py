"""Input that cannot be used, through the real command line: two sentences, code 2, no trace."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_helpers import TINY_FLAGS, curate, listing, snapshot, spawn, write_plain_pool


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a sound pool and target."""
    return write_plain_pool(tmp_path / "place")


def arguments(place: Path, *more: str, **paths: Path | str) -> list[str]:
    named = {"pool": place / "pool", "target": place / "target.parquet", "out": place / "out"}
    flags = [part for name, path in {**named, **paths}.items() for part in (f"--{name}", str(path))]
    return ["run", *flags, *TINY_FLAGS, *more]


def refused(place: Path, *more: str, **paths: Path | str) -> str:
    """What `curate run` says as it refuses; nothing may have been written."""
    before = snapshot(place), listing(place)
    result = curate(*arguments(place, *more, **paths))
    assert result.exit_code == 2, (result.exit_code, result.exception, result.stderr)
    assert result.stdout == ""
    assert (snapshot(place), listing(place)) == before
    return str(result.stderr)


def says(problem: str, remedy: str) -> str:
    return f"Error: {problem}\nTo fix: {remedy}\n"


def rewrite(place: Path, name: str, columns: Any) -> Path:
    path = place / name
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path)
    return path


# Paths.


@pytest.mark.parametrize("role", ["pool", "target"])
def test_path_is_not_there(place: Path, role: str) -> None:
    missing = place / "no such"
    assert refused(place, **{role: missing}) == says(
        f"The {role} path does not exist: {missing}.",
        "Check the spelling, or give a Parquet or JSONL file, a folder, a glob, a URL or hf:NAME.",
    )


@pytest.mark.parametrize("role", ["pool", "target"])
def test_no_shards(place: Path, role: str) -> None:
    empty = place / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("not a shard")
    assert refused(place, **{role: empty}) == says(
        f"No shards were found for the {role} in {empty}.",
        "Give a path with .parquet, .jsonl, .jsonl.gz or .jsonl.zst files in it.",
    )


def test_a_glob_without_matches(place: Path) -> None:
    pattern = str(place / "pool" / "x*.parquet")
    assert refused(place, pool=pattern) == says(
        f"No shards were found for the pool in {pattern}.",
        "Give a path with .parquet, .jsonl, .jsonl.gz or .jsonl.zst files in it.",
    )


def test_a_broken_target_is_named(place: Path) -> None:
    """A broken shard of the pool may be left out, see test_quarantine.py."""
    broken = place / "target.parquet"
    broken.write_bytes(b"PAR1 and then nothing")
    said = refused(place)
    assert said.startswith(f"Error: Shard {broken} is not a readable Parquet file (")
    assert said.endswith(").\nTo fix: Repair or remove the shard.\n")


@pytest.mark.parametrize("shard", [0, 1])
def test_damage_in_the_data_of_the_target(place: Path, shard: int) -> None:
    """Behind a good footer and sound rows: found before the pool is read, not after."""
    target = place / "targets"
    target.mkdir()
    for name in ("0", "1"):
        rows = {"text": [f"row {row} " * 20 for row in range(3000)]}
        pq.write_table(pa.table(rows), target / f"{name}.parquet", row_group_size=1000)
    broken = target / f"{shard}.parquet"
    data = bytearray(broken.read_bytes())
    chunk = pq.read_metadata(broken).row_group(2).column(0)
    data[chunk.data_page_offset : chunk.data_page_offset + 20] = bytes(20)
    broken.write_bytes(data)
    said = refused(place, target=target)
    assert said.startswith(f"Error: Shard {broken} is not a readable Parquet file (")
    assert said.endswith(").\nTo fix: Repair or remove the shard.\n")


def test_a_row_of_the_target_that_is_not_text(place: Path) -> None:
    target = place / "target.jsonl"
    target.write_bytes(b'{"text": "a b"}\n' * 2000 + b'{"text": "\xff"}\n')
    said = refused(place, target=target)
    assert said.startswith(f"Error: Row 2000 of shard {target} cannot be used (")


# Columns.


def test_a_column_that_parquet_cannot_hold(place: Path) -> None:
    """Found before any work: the dataset is written after all of it."""
    pool = place / "objects.jsonl"
    pool.write_text('{"text": "a b c", "meta": {"extra": {}}}\n' * 9)
    said = refused(place, pool=pool)
    assert said.startswith("Error: The pool has a column that Parquet cannot hold (")
    assert "'extra'" in said
    assert said.endswith(
        ").\nTo fix: Leave that column out of the pool, or give its values as text.\n"
    )


@pytest.mark.parametrize("out", ["s3://bucket/out", "file:///x/out", "run:1/out"])
def test_an_output_folder_that_is_an_address(
    place: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    assert refused(place, "--out", out) == says(
        f"The output folder {out} looks like an address, but output goes to a local disk.",
        "Give a local folder with --out; one with a colon in it by its absolute path.",
    )


def test_an_output_folder_of_nobody(place: Path) -> None:
    assert refused(place, "--out", "~nobody-of-that-name/x") == says(
        "There is no user of the name in ~nobody-of-that-name/x.",
        "Give another folder with --out.",
    )


def test_no_such_text_column(place: Path) -> None:
    assert refused(place, "--text-column", "body") == says(
        'The pool has no column "body" (it has: text, id).',
        "Name the column that holds the text with --text-column.",
    )


def test_no_such_text_column_in_the_target(place: Path) -> None:
    rewrite(place, "target.parquet", {"content": ["a b c"], "n": [1]})
    said = refused(place)
    assert said.startswith('Error: The target has no column "text" (it has: content, n).\nTo fix: ')


def test_target_text_column_is_its_own(place: Path) -> None:
    said = refused(place, "--set", "target_text_column=body")
    assert said.startswith('Error: The target has no column "body" (it has: text).\nTo fix: ')


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (pa.array([1, 2]), "int64"),
        (pa.array([["a"], ["b"]]), "list<element: string>"),
        (pa.array([b"a", b"b"]), "binary"),
    ],
)
def test_text_column_does_not_hold_text(place: Path, values: pa.Array, kind: str) -> None:
    shard = rewrite(place, "other.parquet", {"text": values})
    assert refused(place, pool=shard) == says(
        f'Column "text" of the pool holds {kind}, not text.',
        "Name a string column with --text-column.",
    )


def test_text_column_that_is_null_throughout(place: Path) -> None:
    shard = rewrite(place, "other.parquet", {"text": pa.nulls(3)})
    assert refused(place, pool=shard) == says(
        'Column "text" of the pool holds null, not text.',
        "Name a string column with --text-column.",
    )


@pytest.mark.parametrize("role", ["pool", "target"])
@pytest.mark.parametrize("texts", [[], ["", None, ""]])
def test_all_texts_are_empty(place: Path, role: str, texts: list[str | None]) -> None:
    shard = rewrite(place, "blank.parquet", {"text": pa.array(texts, pa.string())})
    assert refused(place, **{role: shard}) == says(
        f"The {role} has no text: every document is empty.",
        f"Give --{role} documents with text in column text.",
    )


@pytest.mark.parametrize("role", ["pool", "target"])
def test_an_empty_jsonl_file(place: Path, role: str) -> None:
    shard = place / "blank.jsonl"
    shard.write_text("")
    flag = "--text-column" if role == "pool" else "--set target_text_column=NAME"
    said = refused(place, **{role: shard})
    assert said == says(
        f'The {role} has no column "text" (it has: none).',
        f"Name the column that holds the text with {flag}.",
    )


def test_shards_differ_in_a_type(place: Path) -> None:
    first = place / "pool" / "0.parquet"
    other = rewrite(place, "pool/2.parquet", {"text": ["a"], "id": ["one"]})
    assert refused(place) == says(
        f'Shard {other} has column "id" as string, but shard {first} has it as int64.',
        "Make the columns of all shards alike, or run on shards of one kind.",
    )


def test_a_column_that_a_shard_has_not(place: Path) -> None:
    first = place / "pool" / "0.parquet"
    other = rewrite(place, "pool/2.parquet", {"text": ["a"]})
    assert refused(place) == says(
        f'Shard {other} has column "id" as absent, but shard {first} has it as int64.',
        "Make the columns of all shards alike, or run on shards of one kind.",
    )


def test_shards_of_two_formats(place: Path) -> None:
    (place / "pool" / "a.jsonl").write_text('{"text": "a", "id": 1}\n')
    assert refused(place) == says(
        f"The pool in {place / 'pool'} mixes Parquet and JSONL shards.",
        "Give a folder or a glob with shards of one format.",
    )


@pytest.mark.parametrize(
    "name", ["curate_weight", "curate_score", "curate_excess_loss", "curate_round"]
)
def test_a_column_that_the_output_needs(place: Path, name: str) -> None:
    shard = rewrite(place, "taken.parquet", {"text": ["a"], name: [1.0]})
    assert refused(place, pool=shard) == says(
        f'The pool already has a column "{name}", which the output needs.',
        "Rename or drop that column first.",
    )


def test_the_target_may_have_output_columns(place: Path) -> None:
    """A curated dataset can be the target of another run."""
    rewrite(place, "target.parquet", {"text": ["a b"], "curate_weight": [1.0]})
    said = refused(place, "--device", "tpu")
    assert "curate_weight" not in said


def test_unknown_metadata_column(place: Path) -> None:
    assert refused(place, "--set", "metadata_columns=[id, src]") == says(
        'metadata_columns names "src", which the pool does not have (it has: id).',
        "Name columns of the pool other than the text.",
    )


# Settings.


@pytest.mark.parametrize("keep", ["0", "1.5", "-1", "nan", "inf", "1.0000001"])
def test_keep_is_out_of_range(place: Path, keep: str) -> None:
    assert refused(place, "--keep", keep) == says(
        f"keep must be a number in (0, 1], but is {float(keep):g}.",
        "Set keep to a number in (0, 1].",
    )


@pytest.mark.parametrize("keep", ["abc", ""])
def test_keep_is_no_number(place: Path, keep: str) -> None:
    assert refused(place, "--keep", keep) == says(
        f'keep must be a number, but is the text "{keep}".', "Set keep to a number."
    )


def test_seed_is_no_whole_number(place: Path) -> None:
    assert refused(place, "--seed", "1.5") == says(
        "seed must be a whole number, but is the number 1.5.", "Set seed to a whole number."
    )


def test_unknown_method(place: Path) -> None:
    assert refused(place, "--method", "best") == says(
        "method must be one of blade, color, rho1, dsir, classifier, perplexity, random, but is "
        "best.",
        "Set method to one of them.",
    )


def test_a_method_that_cannot_decide_by_token(place: Path) -> None:
    assert refused(place, "--method", "dsir", "--granularity", "token") == says(
        "Method dsir cannot decide by token.",
        "Use --granularity document, or --method blade, color, rho1 or random.",
    )


def test_tokens_are_not_sampled(place: Path) -> None:
    sampled = ("--set", "score_tokens=64")
    assert refused(place, "--granularity", "token", *sampled) == says(
        "score_tokens is 64, but granularity is token, where every token is decided.",
        "Leave score_tokens out, or decide by document.",
    )


def test_unknown_granularity(place: Path) -> None:
    assert refused(place, "--granularity", "word") == says(
        "granularity must be one of document, token, but is word.",
        "Set granularity to one of them.",
    )


def test_unknown_model(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no retries
    assert refused(place, "--model", "huge") == says(
        "There is no model huge: it is not nano, tiny, small, base, and no causal language model "
        "with safetensors weights could be loaded from there.",
        "Set --model to one of the presets, a model folder or a Hub id.",
    )


def test_a_model_folder_without_a_tokenizer(place: Path) -> None:
    """A model that can be read in part is refused before anything is written, too."""
    from transformers import LlamaConfig

    model = place / "model"
    LlamaConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    ).save_pretrained(model)  # fmt: skip
    refused(place, "--model", str(model))


def test_unknown_key(place: Path) -> None:
    assert refused(place, "--set", "blade.lamda=1") == says(
        "There is no setting blade.lamda.", "Did you mean blade.lambda?"
    )


def test_unknown_key_in_the_file(place: Path) -> None:
    (place / "c.yaml").write_text("blade:\n  pases: 2\n")
    assert refused(place, str(place / "c.yaml")) == says(
        "There is no setting blade.pases.", "Did you mean blade.passes?"
    )


def test_a_missing_config_file(place: Path) -> None:
    assert refused(place, str(place / "c.yaml")) == says(
        f"The config file {place / 'c.yaml'} cannot be read.", "Give the path of a YAML file."
    )


def test_nothing_given() -> None:
    result = curate("run")
    assert result.exit_code == 2
    assert result.stderr == says("pool is missing.", "Give --pool or write pool in the config.")


@pytest.mark.parametrize("device", ["tpu", "gpu", "mps", "meta", ""])
def test_unknown_device(place: Path, device: str) -> None:
    assert refused(place, "--device", device) == says(
        f"compute.device must be auto, cpu, cuda or cuda:N, but is {device}.",
        "Set --device to one of them.",
    )


def test_a_device_that_is_not_here(place: Path) -> None:
    assert refused(place, "--device", "cuda:99") == says(
        "There is no device cuda:99 on this machine.", "Use --device cpu or --device auto."
    )


@pytest.mark.parametrize("overlap", [32, 40])
def test_overlap_as_large_as_the_window(place: Path, overlap: int) -> None:
    assert refused(place, "--set", f"model.window_overlap={overlap}") == says(
        f"model.window_overlap is {overlap}, but must be less than the window of 32.",
        "Set model.window_overlap to a smaller number.",
    )


def test_window_beyond_the_model(place: Path) -> None:
    assert refused(place, "--set", "model.window=65537") == says(
        "model.window is 65537, but nano reads at most 65536 tokens.",
        "Set model.window to 65536 or less.",
    )


# The output folder.


def test_output_folder_of_somebody_else(place: Path) -> None:
    out = place / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    assert refused(place) == says(
        f"The output folder {out} is not empty and holds no curate run.",
        "Give another folder with --out, or empty this one.",
    )
    assert (out / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("manifest", ["{}", "no json", "[]", '{"format_version": 99}'])
def test_output_folder_with_a_manifest_of_something_else(place: Path, manifest: str) -> None:
    out = place / "out"
    out.mkdir()
    (out / "manifest.json").write_text(manifest)
    assert refused(place) == says(
        f"The manifest in {out} was not written by this version of curate.",
        "Give another folder with --out.",
    )


def test_output_path_is_a_file(place: Path) -> None:
    out = place / "out"
    out.write_text("a file")
    assert refused(place) == says(f"The output {out} is a file.", "Give another folder with --out.")
    assert out.read_text() == "a file"


def test_output_path_below_a_file(place: Path) -> None:
    (place / "file").write_text("a file")
    refused(place, out=place / "file" / "out")


@pytest.mark.parametrize(("name", "character"), [("what?", "question mark"), ("a\\b", "backslash")])
def test_output_path_that_the_log_cannot_have(place: Path, name: str, character: str) -> None:
    """DuckDB refuses some characters; that must be said before hours of work, not after."""
    out = place / name
    assert refused(place, out=out) == says(
        f"DuckDB cannot write to {out / 'selection_log.duckdb'} because its path has a "
        f"{character}.",
        "Choose an output folder without one.",
    )


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff/out"])
def test_output_path_that_is_not_utf_8(place: Path, name: bytes) -> None:
    out = place / os.fsdecode(name)
    shown = ascii(str(out / "selection_log.duckdb")).strip("'")
    assert refused(place, out=out) == says(
        f"DuckDB cannot write to {shown} because its path is not UTF-8.",
        "Choose an output folder with another path.",
    )
    assert not out.exists()


@pytest.mark.parametrize("flag", ["pool", "target", "out"])
def test_an_empty_path_is_not_the_current_folder(
    place: Path, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a shell variable is not set."""
    monkeypatch.chdir(place)
    assert refused(place, **{flag: ""}) == says(
        f"{flag} is empty.", f"Give --{flag} or write {flag} in the config."
    )


INSIDE = [
    ("pool", "pool/out"),
    ("pool/", "pool/a/b"),
    ("file://{place}/pool", "pool/out"),
    ("local://{place}/pool", "pool/out"),
    ("pool/**/*.parquet", "pool/out"),
    ("file://{place}/pool/**/*.parquet", "pool/out"),
    ("p*", "pool/out"),
    ("p*l/o*t", "pool/out"),
    ("pool/*/*/*.parquet", "pool/out"),
    ("pool/*/*/*/*.parquet", "pool/out"),
    ("pool/o*/data/part-*", "pool/out"),
    ("p[o]ol/**", "pool/../pool/out"),
]
APART = [
    ("pool", "pool-out"),
    ("pool/*.parquet", "pool/out"),
    ("pool/*/*.parquet", "pool/out"),
    ("pool/?.parquet", "pool/out"),
    ("pool/**/*.parquet", "out"),
    ("file://{place}/pool", "out"),
    ("memory://{place}/pool", "pool/out"),
    ("s3://pool/**", "pool/out"),
    ("hf:owner/name?split=train", "out"),
    ("pool/0.parquet", "pool/out"),
]


@pytest.mark.parametrize(
    ("source", "out", "inside"),
    [(*case, True) for case in INSIDE] + [(*case, False) for case in APART],
)
def test_output_folder_inside_or_beside_its_input(
    place: Path, monkeypatch: pytest.MonkeyPatch, source: str, out: str, inside: bool
) -> None:
    from curate.pipeline import prepare

    monkeypatch.chdir(place)
    source = source.format(place=place)
    found = any(prepare.takes_in(source, Path(out) / name) for name in prepare._WRITTEN)
    assert found == inside


@pytest.mark.parametrize("role", ["pool", "target"])
@pytest.mark.parametrize("source", ["{folder}", "file://{folder}", "{folder}/**/*.parquet"])
def test_an_output_folder_inside_its_input_is_refused(place: Path, role: str, source: str) -> None:
    folder = write_plain_pool(place / "other") / "pool"
    given, out = source.format(folder=folder), folder / "out"
    assert refused(place, **{role: given, "out": out}) == says(
        f"The output folder {out} lies inside --{role} {given}.",
        "Give another folder with --out.",
    )


def test_an_empty_output_folder_is_fine(place: Path) -> None:
    from curate.config import load_config
    from curate.pipeline.prepare import prepare

    (place / "out").mkdir()
    paths = {"pool": place / "pool", "target": place / "target.parquet", "out": place / "out"}
    prepare(load_config(None, {name: str(path) for name, path in paths.items()}))


# In a process of its own, and for library callers.


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--keep", "2"], "keep must be a number in (0, 1], but is 2."),
        (["--text-column", "body"], 'The pool has no column "body" (it has: text, id).'),
    ],
)
def test_in_a_process_of_its_own(place: Path, more: list[str], problem: str) -> None:
    before = listing(place)
    home = place.parent / "home"
    home.mkdir()
    done = spawn(*arguments(place, *more), cwd=place, HOME=str(home))
    assert (done.returncode, done.stdout) == (2, "")
    error, remedy = done.stderr.splitlines()
    assert error == f"Error: {problem}"
    assert remedy.startswith("To fix: ")
    assert listing(place) == before
    assert listing(home) == []


def test_library_callers_get_the_same_sentences(place: Path) -> None:
    import curate as library

    paths = {"pool": place / "nowhere", "target": place / "target.parquet", "out": place / "out"}
    config = library.load_config(flags=paths)
    with pytest.raises(library.InvalidInput, match="The pool path does not exist") as caught:
        library.run(config, io.StringIO())
    assert isinstance(caught.value, library.CurateError)
    assert not (place / "out").exists()


def test_library_callers_may_give_paths_as_strings(tmp_path: Path) -> None:
    import curate as library

    nothing, dest = str(tmp_path / "nothing"), str(tmp_path / "dest")
    settings = library.EvaluateSettings(out=nothing, test="t.parquet", against=(dest,))
    assert (settings.out, settings.against) == (tmp_path / "nothing", (tmp_path / "dest",))
    calls: list[Callable[[], object]] = [
        lambda: library.run_sql(nothing, "FROM run"),
        lambda: library.summary(nothing),
        lambda: library.why(nothing, "0:0"),
        lambda: library.compare([nothing, dest]),
        lambda: library.verify(nothing),
        lambda: library.export(nothing, to="hf", dest=dest),
        lambda: library.evaluate(settings),
    ]
    for call in calls:
        with pytest.raises(library.InvalidInput, match="There is no "):
            call()


@pytest.mark.parametrize("verb", [["log"], ["export", "--to", "hf", "--dest"]])
def test_a_folder_that_holds_no_run(tmp_path: Path, verb: list[str]) -> None:
    nothing = tmp_path / "nothing"
    more = [*verb[1:], str(tmp_path / "dest")] if len(verb) > 1 else []
    result = curate(verb[0], str(nothing), *more)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: There is no ")
    assert result.stderr.endswith("To fix: Give the output folder of a finished curate run.\n")
    assert listing(tmp_path) == []
