"""A run's folder from somebody else: no verb reads, writes or removes anything outside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile_helpers import Payload
from run_helpers import Run, curate, run_arguments, snapshot

from curate.errors import CurateError, InvalidInput
from curate.evaluation.runs import open_run
from curate.evaluation.store import open_store, write_store
from curate.evaluation.tokens import cached_tokens
from curate.read.cache import cache_from_json
from curate.read.documents import Documents
from curate.read.tokenizer import load_tokenizer
from curate.write.parts import part_files


@pytest.fixture
def run(blade: Run, tmp_path: Path) -> Run:
    return blade.copy(tmp_path / "out")


def change(run: Run, edit: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite the manifest."""
    path = run.out / "manifest.json"
    tree = json.loads(path.read_text())
    edit(tree)
    path.write_text(json.dumps(tree))


def forget(*kept: str) -> Callable[[dict[str, Any]], None]:
    """An edit after which only these stages are done."""

    def edit(tree: dict[str, Any]) -> None:
        tree["stages"] = {name: tree["stages"][name] for name in kept}

    return edit


def verbs(run: Run, place: Path) -> list[list[str]]:
    out = str(run.out)
    return [
        run_arguments(run.inputs, run.out),
        ["log", out],
        ["log", out, "--why", "0:1"],
        ["compare", out, out],
        ["export", out, "--to", "parquet", "--dest", str(place / "export")],
        ["evaluate", out, "--test", str(run.inputs / "target.parquet"), "--seeds", "1"],
        ["verify", out, "--full"],
    ]


LINKS = {
    "data": "",
    "data/part-00007.parquet": "part-00000.parquet",
    "state": "",
    "state/lock": "secret.txt",
    "state/checkpoints": "deep",
    "state/tokens": "deep",
    "state/rounds/more": "deep",
    "tokenizer": "deep",
    "evaluation": "",
    "evaluation/tokens": "deep",
    "evaluation/results": "deep",
    "selection_log.duckdb": "secret.txt",
    "manifest.json": "secret.txt",
    "config.yaml": "secret.txt",
    "dangling": "absent",
}


@pytest.mark.parametrize(("name", "leads_to"), LINKS.items(), ids=LINKS)
def test_no_verb_follows_a_link_out(
    run: Run, victim: Path, tmp_path: Path, name: str, leads_to: str
) -> None:
    """Stages are left to do, so a run would empty `data/` and clear its checkpoints."""
    change(run, lambda tree: tree["stages"].pop("complete"))
    link = run.out / name
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(victim / leads_to)
    before = snapshot(victim)
    for arguments in verbs(run, tmp_path):
        result = curate(*arguments)
        assert result.exit_code == 2, (arguments, result.exception)
        assert result.stderr == (
            f"Error: {link} is a link that leads out of its folder.\n"
            "To fix: Put what it leads to in its place, or give another folder.\n"
        ), arguments
        assert result.stdout == ""
    assert snapshot(victim) == before
    assert not (victim / "absent").exists()
    assert not (tmp_path / "export").exists()


def test_an_output_folder_may_itself_be_a_link(run: Run, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(run.out)
    assert curate(*run_arguments(run.inputs, link)).exit_code == 0
    assert curate("log", str(link)).exit_code == 0


def test_a_link_within_the_folder_is_followed(run: Run) -> None:
    shutil.move(run.out / "README.md", run.out / "state" / "README.md")
    (run.out / "README.md").symlink_to("state/README.md")
    assert curate("log", str(run.out)).exit_code == 0


DAMAGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "stages are a list": lambda tree: tree.update(stages=[]),
    "a stage is a text": lambda tree: tree["stages"].update(select="x"),
    "totals are texts": lambda tree: tree["stages"]["select"].update(tokens="1"),
    "other totals": lambda tree: tree["stages"].update(complete={"os": 1}),
    "no files": lambda tree: tree.pop("files"),
    "pool is a text": lambda tree: tree.update(pool="x"),
    "pool of lists": lambda tree: tree.update(pool=[[]]),
    "a shard without uri": lambda tree: tree["pool"][0].pop("uri"),
    "config is a list": lambda tree: tree.update(config=[]),
    "partial is a list": lambda tree: tree.update(partial=[]),
    "no version of curate": lambda tree: tree.pop("curate_version"),
    "another version": lambda tree: tree.update(format_version="../../x"),
}


@pytest.mark.parametrize("edit", DAMAGED.values(), ids=DAMAGED)
def test_a_manifest_of_another_form_ends_in_a_sentence(
    run: Run, edit: Callable[[dict[str, Any]], object]
) -> None:
    change(run, edit)
    result = curate(*run_arguments(run.inputs, run.out))
    assert result.exit_code == 2, result.exception
    assert result.stderr == (
        f"Error: The manifest in {run.out} was not written by this version of curate.\n"
        "To fix: Give another folder with --out.\n"
    )


def test_a_manifest_that_is_deep_ends_in_a_sentence(run: Run) -> None:
    (run.out / "manifest.json").write_text("[" * 100_000)
    assert curate(*run_arguments(run.inputs, run.out)).exit_code == 2


PATHS = ["../../victim/secret", "/etc/passwd", "shard-00000-00000/../../x", "", 7, None]


@pytest.mark.parametrize("name", PATHS)
def test_a_fragment_is_no_path(run: Run, victim: Path, name: object) -> None:
    def edit(tree: dict[str, Any]) -> None:
        forget("tokenizer", "tokens", "config", "warm-up")(tree)
        tree["stages"]["tokens"]["fragments"][0]["name"] = name

    change(run, edit)
    before = snapshot(victim)
    result = curate(*run_arguments(run.inputs, run.out))
    assert result.exit_code == 2, result.exception
    assert result.stderr == (
        f"Error: What the run knows of its tokens in {run.out / 'state' / 'tokens'} was changed.\n"
        "To fix: Run curate run with another --out.\n"
    )
    assert snapshot(victim) == before


@pytest.mark.parametrize("tree", [{}, {"partitions": 1, "fragments": [7]}, {"fragments": []}])
def test_token_lists_of_another_form_end_in_a_sentence(tree: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="was changed"):
        cache_from_json(Path("state/tokens"), tree)


def test_the_tokens_of_an_evaluation_are_held_to_the_same(run: Run, victim: Path) -> None:
    shutil.rmtree(run.out / "state" / "tokens")
    tokenizer = load_tokenizer(str(run.out / "tokenizer"))
    fragment = {"name": f"{victim}/secret", "shard_id": 0}
    sizes = dict.fromkeys(("rows", "documents", "tokens", "bytes"), 1)
    cache = {"partitions": 1, "fragments": [{**fragment, **sizes}]}
    place = run.out / "evaluation" / "tokens"
    place.mkdir(parents=True)
    index = {"tokenizer": tokenizer.fingerprint, "seed": 0, "cache": cache}
    (place / "cache.json").write_text(json.dumps(index))
    with pytest.raises(InvalidInput, match="was changed"):
        cached_tokens(open_run(run.out), tokenizer)


@pytest.mark.parametrize(
    "kinds", [{"input_ids": "|O"}, {"../../victim/secret.txt": "|u1"}, {"ids": "<M8[s]"}]
)
def test_mapped_arrays_are_numbers_of_the_store(tmp_path: Path, kinds: dict[str, str]) -> None:
    """An array of objects would take the file's bytes for addresses in memory."""
    one = Documents(np.array([0]), np.array([8]), np.array([0, 8]), np.zeros(8, dtype=np.uint16))
    write_store(tmp_path / "store", iter([(one, np.ones(1))]), {})
    index = tmp_path / "store" / "store.json"
    tree = json.loads(index.read_text())
    index.write_text(json.dumps({**tree, "kinds": {**tree["kinds"], **kinds}}))
    with pytest.raises(InvalidInput) as caught:
        open_store(tmp_path / "store")
    assert caught.value.problem == f"{index} was changed."
    assert caught.value.remedy == f"Remove the folder {tmp_path / 'store'}."


def test_files_that_are_no_parts_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("part-00001.parquet", "part-00000.parquet", "part-x.parquet", "part-.parquet"):
        (tmp_path / "data" / name).touch()
    assert [path.name for path in part_files(tmp_path)] == [
        "part-00000.parquet", "part-00001.parquet",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["pickle", "garbage", "of another run", "absent"])
def test_a_checkpoint_runs_nothing(run: Run, tmp_path: Path, kind: str) -> None:
    change(run, forget("tokenizer", "tokens", "config", "warm-up"))
    marker = tmp_path / "marker"
    checkpoint = run.out / "state" / "checkpoints" / "warm-up.pt"
    if kind == "pickle":
        torch.save(Payload(marker), checkpoint)
    elif kind == "garbage":
        checkpoint.write_bytes(b"garbage")
    elif kind == "of another run":
        torch.save({"proxy": {}}, checkpoint)
    result = curate(*run_arguments(run.inputs, run.out))
    assert not marker.exists()
    assert result.exit_code == CurateError.exit_code, result.exception
    problem, remedy = result.stderr.splitlines()[-2:]
    assert problem.startswith(f"Error: The checkpoint {checkpoint} cannot be read (")
    assert problem.endswith(").")
    assert remedy == (
        "To fix: Run curate run with another --out, or remove the output folder and start again."
    )
