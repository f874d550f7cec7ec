"""The order of a verification: the manifest, files, the log, parts, and rows against the pool.

What a check rests on is looked at first. A file that is not the recorded one is a finding and is
read no further: what is inside a damaged file says nothing, and reading it may bring down the
process. The code that wrote the output (`select`, `write`, `pipeline`) is not asked, so that a
fault of it cannot hide itself.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from curate.errors import InvalidInput
from curate.files import StrPath, check_contained
from curate.log import attach
from curate.log.query import LOG_NAME, first_line
from curate.read.corpus import Corpus, open_corpus
from curate.select.masks import MaskReader
from curate.verification.files import check_config, check_files
from curate.verification.log import check_log
from curate.verification.manifest import Manifest, read_manifest
from curate.verification.parts import Group, Part, check_parts, choose_groups
from curate.verification.result import CHECKS, Notes, Verification, plural
from curate.verification.rows import Encode, RowChecks

_MASKS = Path("state") / "masks.parquet"


def verify(
    out: StrPath, full: bool = False, *, pool: str | None = None, source: bool = True
) -> Verification:
    """Whether the output folder of a finished run is whole: `curate verify`.

    Args:
        out: the output folder of a finished run; nothing in it is written.
        full: look at every row of the dataset, not at a sample of row groups.
        pool: where the run's pool lies now, if it moved.
        source: whether to read the pool again.

    Raises:
        InvalidInput: there is no finished run in `out`, or a link in it leads out of it.
    """
    if pool is not None and not source:
        raise InvalidInput(
            "--pool says where to read the pool and --no-source not to read it.",
            "Leave one of them out.",
        )
    out = Path(out).expanduser()
    check_contained(out)
    notes = Notes()
    manifest = read_manifest(out, notes)
    if manifest is None:
        notes.skip("manifest.json says nothing of it", *list(CHECKS)[1:])
        return notes.result(out, full=full)
    sound = check_files(out, manifest, notes)
    check_config(out, manifest, sound, notes)
    corpus, unchanged = _open_pool(manifest, pool, notes) if source else (None, set())
    if not source:
        notes.skip("the pool was left out", "source")
    if LOG_NAME in sound:
        _check_rows(out, manifest, sound, notes, full=full, pool=corpus, unchanged=unchanged)
    _skip_without_log(manifest, notes)
    return notes.result(out, full=full)


def _skip_without_log(manifest: Manifest, notes: Notes) -> None:
    """Whatever was not looked at rests on the log."""
    names = ["settings", "log", "parts", "outcome", "source"]
    for name in [*names, *(["tokens"] if manifest.by_token else [])]:
        if name not in notes.checked:
            notes.skip(f"{LOG_NAME} is not the recorded one, or cannot be read", name)


def _open_pool(
    manifest: Manifest, source: str | None, notes: Notes
) -> tuple[Corpus | None, set[int]]:
    """The pool, and the shards of it that are what they were."""
    place = source or manifest.settings["pool"]
    try:
        pool = open_corpus(place, text_column=manifest.settings["text_column"], tolerant=True)
    except InvalidInput as error:
        problem = error.problem.rstrip(".")
        if source is None and "://" not in place and not place.startswith(("/", "~")):
            problem += " (the run was started in another folder, maybe)"
        problem += ", so no row was held against the pool"
        _no_pool(problem, notes)
        return None, set()
    if len(pool.shards) != len(manifest.pool):
        shards = plural(len(pool.shards), "shard")
        _no_pool(f"The pool has {shards}, but the run's had {len(manifest.pool)}", notes)
        return None, set()
    unchanged = set()
    for shard, recorded in zip(pool.shards, manifest.pool, strict=True):
        name = f"The pool's shard {shard.shard_id} ({shard.uri})"
        if (shard.bytes, shard.fingerprint) != (recorded.bytes, recorded.fingerprint):
            notes.find("source", f"{name} is not what the run read.")
            continue
        unchanged.add(shard.shard_id)
        if shard.rows not in (None, recorded.rows) and not recorded.damaged:
            rows = plural(shard.rows, "row")
            notes.find("source", f"{name} has {rows}, but the run read {recorded.rows:,}.")
    return pool, unchanged


def _no_pool(problem: str, notes: Notes) -> None:
    notes.find(
        "source",
        f"{problem}: say with --pool where the run's pool lies now, or leave it out with "
        "--no-source.",
    )
    notes.skip("the run's pool was not found", "source")


def _check_rows(
    out: Path,
    manifest: Manifest,
    sound: set[str],
    notes: Notes,
    *,
    full: bool,
    pool: Corpus | None,
    unchanged: set[int],
) -> None:
    """Everything that needs the log."""
    try:
        with attach.attach([out]) as (connection, [log]):
            kept = check_log(connection, log, manifest, notes)
            parts = check_parts(out, manifest, sound, kept, notes)
            whole = len(parts) == sum(count > 0 for count in kept.values())
            recorded = full and whole and manifest.by_token and (out / _MASKS).is_file()
            rows = RowChecks(
                connection,
                notes,
                pool=pool,
                unchanged=unchanged,
                encode=_encoder(out, manifest, sound, notes) if manifest.by_token else None,
                text_column=manifest.settings["text_column"],
                masks=MaskReader(out / _MASKS) if recorded else None,
            )
            groups = choose_groups(parts, manifest.settings["seed"], full=full)
            rows.check(groups)
            _tell_rows(rows, groups, parts, manifest, notes, every=sum(kept.values()))
    except InvalidInput as error:
        notes.find("log", error.problem)
    except duckdb.Error as error:
        notes.find("log", f"The selection log cannot be read: {first_line(error)}")


def _encoder(out: Path, manifest: Manifest, sound: set[str], notes: Notes) -> Encode | None:
    """The run's tokenizer, where its files are the recorded ones."""
    from curate.read.tokenizer import load_tokenizer, text_values  # noqa: PLC0415 (slow to import)

    if {name for name in manifest.files if name.startswith("tokenizer/")} - sound:
        notes.skip("tokenizer/ is not the recorded one", "tokens")
        return None
    try:
        tokenizer = load_tokenizer(str(out / "tokenizer"))
    except Exception:  # the library raises many kinds, from several packages
        notes.find("tokens", "The tokenizer in tokenizer/ cannot be loaded.")
        notes.skip("there is no tokenizer", "tokens")
        return None
    return lambda column: tokenizer.encode(text_values(column))


def _tell_rows(
    rows: RowChecks,
    groups: list[Group],
    parts: list[Part],
    manifest: Manifest,
    notes: Notes,
    *,
    every: int,
) -> None:
    row_groups = plural(sum(len(part.group_rows) for part in parts), "row group")

    def sample(count: int) -> str:
        return f"{count:,} of {plural(every, 'row')}, {len(groups):,} of {row_groups}"

    notes.checked["outcome"] = sample(rows.rows)
    if manifest.by_token and "tokens" not in notes.skipped:
        against = "against state/" if rows.masks_compared else "by their count"
        notes.checked["tokens"] = f"{sample(rows.rows)}, masks {against}"
    if rows.replayed or "source" not in notes.skipped:
        notes.checked["source"] = sample(rows.replayed)
