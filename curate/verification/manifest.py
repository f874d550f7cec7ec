"""The manifest as a verification reads it: whole or not, and what it says of the run.

It is read here apart from the code that wrote it, and nothing in it is believed: a manifest of
other shape is a finding, and a name in it that leads out of the folder is not followed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from curate.errors import InvalidInput
from curate.files import SEAL, json_text, sealed_json_text
from curate.log.query import LOG_NAME
from curate.verification.result import Notes

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1

_ENTRIES = {
    "format_version", "curate_version", "config", "pool", "target", "model", "compute", "stages",
    "partial", "rollbacks", "files", SEAL,
}  # fmt: skip
_REMEDY = "Give the output folder of a finished curate run."
_ROUND_COUNTS = ("documents_scored", "documents_kept", "tokens_scored", "tokens_kept")


@dataclass(frozen=True, slots=True)
class Input:
    """A pool shard as the run found it, and what it read of it (nothing, where it is damaged)."""

    uri: str
    bytes: int
    fingerprint: str
    rows: int
    documents: int
    tokens: int
    text_bytes: int
    damaged: bool


@dataclass(frozen=True, slots=True)
class Round:
    """A round's counts (`_ROUND_COUNTS`) and the scale of its scores."""

    counts: dict[str, int]
    score_mean: float
    score_std: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What the manifest of a finished run says.

    Attributes:
        files: SHA-256 of every output file by its path in the folder.
        settings: the resolved settings, without the output folder.
        run_id: the name of the run that follows from its settings and inputs.
        pool: the pool's shards in order.
        rounds: its rounds in order.
        totals: pool_documents, pool_tokens, kept_documents and kept_tokens.
    """

    files: dict[str, str]
    settings: dict[str, Any]
    run_id: str
    pool: tuple[Input, ...]
    rounds: tuple[Round, ...]
    totals: dict[str, int]

    @property
    def by_token(self) -> bool:
        """Whether tokens were kept or dropped, not documents."""
        return bool(self.settings["granularity"] == "token")

    @property
    def parts(self) -> list[str]:
        """The recorded files of the dataset, in pool order: numbers of five digits, then longer."""
        names = (name for name in self.files if name.startswith("data/"))
        return sorted(names, key=lambda name: (len(name), name))


def read_manifest(out: Path, notes: Notes) -> Manifest | None:
    """The manifest of a finished run, as far as it can be read.

    Raises:
        InvalidInput: there is no finished run in `out`.
    """
    path = out / MANIFEST_NAME
    notes.checked["manifest"] = "1 file"
    if not path.is_file():
        if not any((out / name).exists() for name in ("data", LOG_NAME)):
            raise InvalidInput(f"There is no finished run in {out}.", _REMEDY)
        notes.find("manifest", "manifest.json is missing.")
        return None
    try:
        text = path.read_bytes().decode("utf-8")
        tree = json.loads(text)
    except (OSError, ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        notes.find("manifest", "manifest.json cannot be read as JSON.")
        return None
    sound = _check_text(text, tree, notes)
    if sound and tree.get("format_version") != FORMAT_VERSION:
        raise InvalidInput(
            f"The manifest in {out} was not written by this version of curate.", _REMEDY
        )
    stages = tree.get("stages")
    if sound and not (isinstance(stages, dict) and "complete" in stages):
        raise InvalidInput(f"There is no finished run in {out}.", _REMEDY)
    try:
        return _parse(tree)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        notes.find("manifest", "manifest.json does not say what a finished run's does.")
        return None


def _check_text(text: str, tree: dict[str, Any], notes: Notes) -> bool:
    """Whether the text is one that curate wrote."""
    before = len(notes.findings)
    for name in tree.keys() - _ENTRIES:
        notes.find("manifest", f'manifest.json has an entry "{name}" that curate does not write.')
    if SEAL in tree and sealed_json_text(tree) != json_text(tree):
        notes.find("manifest", "manifest.json was changed: it does not hold its own SHA-256.")
    elif text != json_text(tree):
        notes.find("manifest", "manifest.json was changed: curate lays out its text otherwise.")
    elif SEAL not in tree:
        notes.checked["manifest"] = "1 file, of a version that gave it no SHA-256 of its own"
    return len(notes.findings) == before


def _parse(tree: dict[str, Any]) -> Manifest:
    stages = tree["stages"]
    for name, sha in tree["files"].items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not isinstance(sha, str):
            raise ValueError(name)
    settings = stages["config"]
    for key, kind in (("pool", str), ("text_column", str), ("granularity", str), ("seed", int)):
        if not isinstance(settings[key], kind):
            raise TypeError(key)
    if "scoring" not in stages and "round-0000" not in stages:
        raise ValueError("rounds")
    identity = {key: tree[key] for key in ("config", "pool", "target")}
    if "model" in tree:
        identity["model"] = tree["model"]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    return Manifest(
        files=dict(tree["files"]),
        settings=settings,
        run_id=digest.hexdigest()[:16],
        pool=_pool(tree["pool"], stages["tokens"]),
        rounds=tuple(
            _round(result)
            for stage, result in stages.items()
            if stage.startswith("round-") or stage == "scoring"
        ),
        totals={
            name: int(stages["complete"][name])
            for name in ("pool_documents", "pool_tokens", "kept_documents", "kept_tokens")
        },
    )


def _pool(shards: list[dict[str, Any]], tokens: dict[str, Any]) -> tuple[Input, ...]:
    counts: dict[int, Counter[str]] = {index: Counter() for index in range(len(shards))}
    for fragment in tokens["fragments"]:
        names = ("rows", "documents", "tokens", "bytes")
        counts[fragment["shard_id"]].update({name: int(fragment[name]) for name in names})
    return tuple(
        Input(
            uri=str(shard["uri"]),
            bytes=int(shard["bytes"]),
            fingerprint=str(shard["fingerprint"]),
            rows=counts[index]["rows"],
            documents=counts[index]["documents"],
            tokens=counts[index]["tokens"],
            text_bytes=counts[index]["bytes"],
            damaged=str(index) in tokens.get("damaged", {}),
        )
        for index, shard in enumerate(shards)
    )


def _round(result: dict[str, Any]) -> Round:
    mean, deviation = float(result["score_mean"]), float(result["score_std"])
    if not (math.isfinite(mean) and math.isfinite(deviation)):
        raise ValueError("score")
    counts = {name: int(result["record"][name]) for name in _ROUND_COUNTS}
    return Round(counts, mean, deviation)
