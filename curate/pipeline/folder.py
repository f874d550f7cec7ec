"""The run's output folder: what is in it, whose it is, and which stages are done.

`manifest.json` is the only state that counts. A stage is done when the manifest that names its
result has been renamed into place; whatever else lies in the folder is rewritten by the stage that
owns it. Times live in `state/times.json`, so that the manifest says the same for every equal run.
Its last entry is the SHA-256 of the rest, so that `curate verify` sees a change of any byte of it.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from curate import clock
from curate.config import Config, config_to_tree
from curate.errors import InvalidInput, OutputConflict, OutputFailed
from curate.files import (
    SEAL,
    check_contained,
    is_whole,
    sealed_json_text,
    sha256_file,
    write_text,
)
from curate.pipeline.lock import LOCK
from curate.pipeline.model_files import model_files
from curate.read.corpus import Corpus, display_uri
from curate.refusal import writing

FORMAT_VERSION = 1

START_AGAIN = "Run curate run with another --out, or remove the output folder and start again."
"""What to do about a run whose own files somebody took away or changed."""

_FREE = ("max_bad_fraction", "compute.checkpoint_minutes", "compute.counting_processes")
"""Settings that no result depends on: a run goes on under others."""

_COUNTS = {
    "select": ("documents", "tokens"),
    "complete": ("pool_documents", "pool_tokens", "kept_documents", "kept_tokens"),
}
"""Stages whose results are counts, by name."""


class RunFolder:
    """One output folder and its manifest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = path / "state"
        self._manifest: dict[str, Any] = {}

    @classmethod
    def open_finished(cls, path: Path) -> RunFolder:
        """The folder of a run that went to its end, for verbs that add to it.

        Raises:
            InvalidInput: there is none in `path`, or a link in it leads out of it.
        """
        folder = cls(path)
        check_contained(path)
        with contextlib.suppress(OutputConflict, OSError):
            folder._manifest = folder._read_manifest()
        if "complete" not in folder._manifest.get("stages", {}):
            raise InvalidInput(
                f"There is no finished run in {path}.",
                "Give the output folder of a finished curate run.",
            )
        return folder

    @property
    def manifest_path(self) -> Path:
        """Where the manifest lies."""
        return self.path / "manifest.json"

    def check(self, config: Config, pool: Corpus, target: Corpus) -> None:
        """Make sure that the folder is free, or holds this very run; write nothing.

        The same run is one of the same inputs and settings, or of the settings that it resolved
        to: a run's own config.yaml goes on with it. An unfinished one goes on only with the version
        that began it, since another's defaults, order or arithmetic would mix two runs in one.

        Raises:
            OutputConflict: it holds other files, or a run of other settings or inputs.
            OutputFailed: it cannot be looked at.
            InvalidInput: a link in it leads out of it.
        """
        with writing(self.path):
            self._check(config, pool, target)

    def _check(self, config: Config, pool: Corpus, target: Corpus) -> None:
        place = next(one for one in (self.path, *self.path.absolute().parents) if one.exists())
        if not place.is_dir():
            raise OutputConflict(
                f"The output {place} is a file.", "Give another folder with --out."
            )
        check_contained(self.path)
        wanted = _identity(config, pool, target)
        if not self.manifest_path.exists():
            if self.path.exists() and any(map(_is_foreign, self.path.iterdir())):
                raise OutputConflict(
                    f"The output folder {self.path} is not empty and holds no curate run.",
                    "Give another folder with --out, or empty this one.",
                )
            begun = {"format_version": FORMAT_VERSION, "curate_version": version("curate")}
            self._manifest = {**begun, **wanted, "stages": {}, "files": {}}
            return
        found = self._read_manifest()
        began = found["curate_version"]
        if "complete" not in found["stages"] and began != version("curate"):
            raise OutputConflict(
                f"The run in {self.path} was begun by curate {display_uri(began)}, "
                f"and this is {version('curate')}, which may decide otherwise.",
                "Go on with the version that began it, or give another folder with --out.",
            )
        differences = _differences(found, wanted)
        resolved = found["stages"].get("config")
        if differences and resolved is not None:
            again = _differences({**found, "config": resolved}, wanted)
            differences = min(differences, again, key=len)
        if differences:
            raise OutputConflict(
                f"The output folder {self.path} holds a run that differs in {differences[0]}"
                f"{_and_more(differences)}.",
                "Give another folder with --out, or remove this one.",
            )
        self._manifest = found

    def create(self) -> None:
        """Make the folder, with a manifest of no stages if it is new."""
        if not self.manifest_path.exists():
            self._write()
        times = self._read_times()
        times.setdefault("started_at", datetime.now(UTC).isoformat())
        self._write_times(times)

    @property
    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run: settings and fingerprints of inputs and model."""
        keys = ("config", "pool", "target", "model")
        return {key: self._manifest[key] for key in keys if key in self._manifest}

    def result(self, stage: str) -> Any:
        """What a finished stage left in the manifest, or None if it is not done."""
        return self._manifest["stages"].get(stage)

    @property
    def done(self) -> list[str]:
        """Names of the stages that are done."""
        return list(self._manifest["stages"])

    def partial(self, stage: str) -> Any:
        """What `pause` wrote of a stage that has not finished, or None."""
        found = self._manifest.get("partial", {})
        return found.get("result") if found.get("stage") == stage else None

    @property
    def compute(self) -> dict[str, str] | None:
        """Device and precision that models run in; None until there are any."""
        found: dict[str, str] | None = self._manifest.get("compute")
        return found

    def hold_compute(self, names: Mapping[str, str], *, begun: bool) -> None:
        """Record the device and precision of the models, or make sure that they are still the same.

        Others round otherwise, and would mix two runs in one.

        Args:
            names: `Compute.names`.
            begun: whether anything that models did is recorded.

        Raises:
            OutputConflict: they were others before.
        """
        before = self.compute
        if before == names:
            return
        if before is not None and begun:
            raise OutputConflict(
                f"The models of the run in {self.path} began on {before['device']} in "
                f"{before['dtype']}, and here they would be on {names['device']} in "
                f"{names['dtype']}, which rounds otherwise.",
                "Go on where it began, or give another folder with --out.",
            )
        self._manifest["compute"] = dict(names)
        self._write()

    def pause(
        self, stage: str, result: Mapping[str, Any], started: float, ended: float | None = None
    ) -> None:
        """Record how far a stage has come.

        Args:
            stage: its name.
            result: plain values with which it can go on.
            started: `time.monotonic()` when this part of it began.
            ended: the same when it ended, if that is not now.
        """
        self._add_time(stage, started, ended)
        self._manifest["partial"] = {"stage": stage, "result": dict(result)}
        self._write()

    @property
    def rollbacks(self) -> list[dict[str, str]]:
        """Every time that a stage was started over: its name (`stage`) and why (`problem`)."""
        return list(self._manifest.get("rollbacks", []))

    def roll_back(self, stage: str, problem: str, started: float) -> None:
        """Record that a stage starts over; what `pause` wrote of it no longer counts.

        Args:
            stage: its name.
            problem: what went wrong, a sentence.
            started: `time.monotonic()` when the stage, or the last part of it, began.
        """
        self._add_time(stage, started)
        self._manifest.pop("partial", None)
        self._manifest["rollbacks"] = [*self.rollbacks, {"stage": stage, "problem": problem}]
        self._write()

    def finish(
        self,
        stage: str,
        result: Mapping[str, Any],
        files: Iterable[Path],
        started: float,
        ended: float | None = None,
    ) -> None:
        """Record that a stage is done.

        Args:
            stage: its name.
            result: plain values that later stages need.
            files: output files that are now complete; their SHA-256 is recorded.
            started: `time.monotonic()` when the stage, or the last part of it, began.
            ended: the same when it ended, if that is not now.
        """
        self._add_time(stage, started, ended)
        self._manifest.pop("partial", None)
        self._manifest["stages"][stage] = dict(result)
        self.record_files(files)

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of every output file by its path in the folder."""
        return dict(self._manifest["files"])

    def forget_files(self, names: Iterable[str]) -> None:
        """Say nothing of output files that are about to change, until they are recorded."""
        for name in names:
            self._manifest["files"].pop(name, None)
        self._write()

    def record_files(self, files: Iterable[Path]) -> None:
        """Take up what a later verb wrote or changed: the SHA-256 of whole output files."""
        for file in files:
            self._manifest["files"][str(file.relative_to(self.path))] = sha256_file(file)
        self._write()

    def stage_seconds(self) -> dict[str, float]:
        """Seconds each finished stage took, over all starts of the run."""
        seconds: dict[str, float] = self._read_times().get("stages", {})
        return seconds

    def started_at(self) -> datetime:
        """When the run was first started."""
        return datetime.fromisoformat(self._read_times()["started_at"])

    def activity_seconds(self) -> dict[str, float]:
        """Seconds by what was done (`curate.clock`), over all starts of the run."""
        seconds: dict[str, float] = self._read_times().get("activities", {})
        return seconds

    def _add_time(self, stage: str, started: float, ended: float | None = None) -> None:
        times = self._read_times()
        seconds = (time.monotonic() if ended is None else ended) - started
        _add(times.setdefault("stages", {}), {stage: seconds})
        _add(times.setdefault("activities", {}), clock.taken())
        self._write_times(times)

    def _write(self) -> None:
        write_text(self.manifest_path, sealed_json_text(self._manifest))

    def _read_manifest(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] | None = json.loads(
                self.manifest_path.read_text(encoding="utf-8")
            )
        except (ValueError, RecursionError):
            found = None
        if found is None or not _is_manifest(found):
            raise OutputConflict(
                f"The manifest in {self.path} was not written by this version of curate.",
                "Give another folder with --out.",
            )
        found.pop(SEAL, None)
        return found

    def _read_times(self) -> dict[str, Any]:
        path = self.state / "times.json"
        try:
            times = json.loads(path.read_bytes())
        except (OSError, ValueError):  # times are not worth a run
            times = {}
        return times if isinstance(times, dict) else {}

    def _write_times(self, times: dict[str, Any]) -> None:
        write_text(self.state / "times.json", json.dumps(times, indent=1) + "\n")


def check_state(paths: Iterable[Path]) -> None:
    """Make sure that Parquet and Arrow files which a run left for itself are there and whole.

    Raises:
        OutputFailed: one is not; what follows would pass it over, or fail without saying why.
    """
    for path in paths:
        if not is_whole(path):
            raise OutputFailed(f"The run's own file {path} is gone or damaged.", START_AGAIN)


def _add(totals: dict[str, float], seconds: Mapping[str, float]) -> None:
    for name, more in seconds.items():
        totals[name] = totals.get(name, 0.0) + more


def _is_manifest(found: Any) -> bool:
    """Whether it has the form of this version's manifests, whoever wrote it."""
    if not isinstance(found, dict) or found.get("format_version") != FORMAT_VERSION:
        return False
    if not isinstance(found.get("curate_version"), str):
        return False
    inputs = [found.get("pool"), found.get("target")]
    model = found.get("model", [])
    compute = found.get("compute", {"device": "", "dtype": ""})
    mappings = [found.get(key) for key in ("config", "stages", "files")]
    return (
        all(isinstance(one, dict) for one in [*mappings, found.get("partial", {})])
        and all(map(_is_result, found["stages"].items()))
        and all(isinstance(one, list) and all(map(_is_input, one)) for one in inputs)
        and _has_texts(compute, "device", "dtype")
        and isinstance(model, list)
        and all(_has_texts(one, "name", "fingerprint") for one in model)
    )


def _is_result(item: tuple[str, Any]) -> bool:
    stage, result = item
    if not isinstance(result, dict):
        return False
    counts = _COUNTS.get(stage)
    return counts is None or (
        result.keys() == set(counts) and all(type(one) is int for one in result.values())
    )


def _is_input(one: Any) -> bool:
    return _has_texts(one, "uri", "fingerprint")


def _has_texts(one: Any, *keys: str) -> bool:
    return isinstance(one, dict) and all(isinstance(one.get(key), str) for key in keys)


def _is_foreign(path: Path) -> bool:
    """Whether a file in a folder without a manifest is not what a run killed at once left."""
    if path.name == LOCK.parent.name and path.is_dir():
        return any(file.name != LOCK.name for file in path.iterdir())
    return path.name != ".manifest.json.tmp"


def _identity(config: Config, pool: Corpus, target: Corpus) -> dict[str, Any]:
    settings = config_to_tree(config)
    settings.pop("out")
    identity = {"config": settings, "pool": _inputs(pool), "target": _inputs(target)}
    model = model_files(config.model.name)
    return {**identity, "model": model} if model else identity


def _inputs(corpus: Corpus) -> list[dict[str, Any]]:
    return [
        {"uri": shard.uri, "bytes": shard.bytes, "fingerprint": shard.fingerprint}
        for shard in corpus.shards
    ]


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs, in words, settings by nested key, inputs by shard and a model by file.

    A manifest of an older curate says nothing of the model's files.
    """
    differences = _config_differences(found.get("config", {}), wanted["config"], "")
    of_another_name = any(one.startswith("model.name ") for one in differences)
    if "model" in found and not of_another_name:
        before, now = _fingerprints(found["model"], "name"), wanted.get("model", [])
        differences += _changes("the model's", before, _fingerprints(now, "name"))
    for role in ("pool", "target"):
        before, now = _fingerprints(found.get(role, []), "uri"), wanted[role]
        differences += _changes(f"the {role} shard", before, _fingerprints(now, "uri"))
    return differences


def _fingerprints(inputs: Iterable[Mapping[str, Any]], key: str) -> dict[str, str]:
    return {one[key]: one["fingerprint"] for one in inputs}


def _changes(what: str, before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What was added, is gone or changed, by name."""
    changes = []
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            state = "added" if name not in before else "gone" if name not in now else "changed"
            changes.append(f"{what} {name} ({state})")
    return changes


def _config_differences(found: Any, wanted: Any, path: str) -> list[str]:
    if path in _FREE:
        return []
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [*wanted, *(key for key in found if key not in wanted)]
        return [
            difference
            for key in keys
            for difference in _config_differences(
                found.get(key), wanted.get(key), f"{path}.{key}" if path else key
            )
        ]
    return [] if found == wanted else [f"{path} ({_shown(found)} then, {_shown(wanted)} now)"]


def _shown(value: Any) -> Any:
    return display_uri(value) if isinstance(value, str) else value


def _and_more(differences: list[str]) -> str:
    others = len(differences) - 1
    return f" and {others} more" if others else ""
