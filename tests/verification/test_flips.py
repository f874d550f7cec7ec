"""One changed bit, anywhere in the output but `state/`, is found."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from run_helpers import Run, listing
from verification_helpers import cover_up, flip, found

from curate.errors import InvalidInput
from curate.verification import verify
from curate.verification.manifest import read_manifest
from curate.verification.result import Notes

FLIPS = 2
"""Random ones of each file, besides its first and its last byte."""

MANIFEST_FLIPS = 400
DAMAGES = 6


def promised(run: Run) -> list[str]:
    """Every file in the output folder outside state/."""
    return [
        name
        for name in listing(run.out)
        if not name.startswith("state/") and (run.out / name).is_file()
    ]


def offsets(size: int, count: int, chance: random.Random) -> list[int]:
    return [0, size - 1, *(chance.randrange(size) for _ in range(count))]


@pytest.mark.parametrize("name", ["by_document", "by_token"])
def test_a_flipped_bit_of_any_file_is_found(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run = request.getfixturevalue(name).copy(tmp_path / "out")
    chance = random.Random(7)
    names = promised(run)
    assert len(names) == 10
    for file in names:
        path = run.out / file
        for offset in offsets(path.stat().st_size, FLIPS, chance):
            before = flip(path, offset, chance.randrange(8))
            done = found(run, source=False)
            assert any(file in finding.sentence for finding in done.findings), (file, offset)
            path.write_bytes(before)
    assert found(run).holds


def test_a_flipped_bit_anywhere_in_the_manifest_is_found(by_document: Run, tmp_path: Path) -> None:
    """Line ends, the names of its entries and its own hash included."""
    run = by_document.copy(tmp_path / "out")
    path = run.out / "manifest.json"
    chance = random.Random(11)
    text = path.read_bytes()
    special = [text.index(b'"sha256"') + at for at in range(10)]
    special += [text.index(b'"complete"') + at for at in range(1, 9)]
    special += [text.index(b'"format_version": 1') + at for at in range(1, 19)]
    for offset in [*special, *offsets(len(text), MANIFEST_FLIPS, chance)]:
        before = flip(path, offset, chance.randrange(8))
        notes = Notes()
        read_manifest(run.out, notes)
        assert notes.counts, offset
        path.write_bytes(before)
    notes = Notes()
    assert read_manifest(run.out, notes) is not None
    assert not notes.counts


def test_a_damaged_manifest_brings_nothing_down(by_document: Run, tmp_path: Path) -> None:
    run = by_document.copy(tmp_path / "out")
    path = run.out / "manifest.json"
    chance = random.Random(12)
    for _ in range(20):
        before = flip(path, chance.randrange(path.stat().st_size), chance.randrange(8))
        assert not found(run).holds
        path.write_bytes(before)


@pytest.mark.parametrize("name", ["by_document", "by_token"])
def test_damage_whose_hash_was_covered_up_is_no_traceback(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Structure, not hashes: whatever Arrow, DuckDB and tokenizers make of the file is survived."""
    run = request.getfixturevalue(name).copy(tmp_path / "out")
    chance = random.Random(13)
    noticed = 0
    files = ["data/part-00000.parquet", "selection_log.duckdb", "config.yaml"]
    for file in [*files, "tokenizer/tokenizer.json"]:
        path = run.out / file
        for _ in range(DAMAGES):
            before = flip(path, chance.randrange(path.stat().st_size), chance.randrange(8))
            cover_up(run)
            noticed += not found(run).holds
            path.write_bytes(before)
    assert noticed >= 6


def test_an_unfinished_run_is_bad_use_and_a_damaged_one_a_finding(
    by_document: Run, tmp_path: Path
) -> None:
    run = by_document.copy(tmp_path / "out")
    path = run.out / "manifest.json"
    path.write_text("{}\n")
    with pytest.raises(InvalidInput):
        verify(run.out)
    for text in ("", "no json", "[]", "[" * 100_000, '{"format_version":1}', "\x00"):
        path.write_text(text)
        assert not verify(run.out).holds, text
