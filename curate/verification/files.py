"""Every file of the output against the manifest, and the copies of the settings in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curate.config.load import read_yaml
from curate.errors import InvalidInput
from curate.files import sha256_file
from curate.log.query import LOG_NAME
from curate.verification.manifest import Manifest
from curate.verification.result import Notes, plural

CONFIG_NAME = "config.yaml"
_ALWAYS = (CONFIG_NAME, "README.md", "report.html", LOG_NAME, "tokenizer/tokenizer.json")
_OWN_FOLDERS = ("data", "tokenizer")
_OWN_NAMES = (*_ALWAYS, "evaluation.json")


def check_files(out: Path, manifest: Manifest, notes: Notes) -> set[str]:
    """Hash every recorded file; returns the names of those that are what was recorded."""
    sound = set()
    size = 0
    for name in _ALWAYS:
        if name not in manifest.files:
            notes.find("files", f"{name} is not recorded in manifest.json.")
    for name, recorded in sorted(manifest.files.items()):
        path = out / name
        try:
            if not path.is_file():
                notes.find("files", f"{name} is missing.")
            elif sha256_file(path) != recorded:
                notes.find("files", f"{name} was changed: its SHA-256 is not the recorded one.")
            else:
                sound.add(name)
                size += path.stat().st_size
        except OSError as error:
            notes.find("files", f"{name} cannot be read ({error.strerror}).")
    for name in _unrecorded(out, manifest):
        notes.find("files", f"{name} was added: it is not recorded in manifest.json.")
    notes.checked["files"] = (
        f"{len(sound):,} of {plural(len(manifest.files), 'file')} whole, {size:,} bytes"
    )
    return sound


def _unrecorded(out: Path, manifest: Manifest) -> Iterator[str]:
    """Files where only curate's own belong, and what DuckDB would read beside the log."""
    for folder in _OWN_FOLDERS:
        for path in sorted((out / folder).rglob("*")):
            name = path.relative_to(out).as_posix()
            if name not in manifest.files and not path.is_dir():
                yield name
    for path in sorted(out.iterdir()):
        own = path.name in _OWN_NAMES or path.name.startswith(f"{LOG_NAME}.")
        if own and path.name not in manifest.files and path.name not in _ALWAYS:
            yield path.name


def check_config(out: Path, manifest: Manifest, sound: set[str], notes: Notes) -> None:
    """Hold config.yaml against the settings in the manifest."""
    if CONFIG_NAME not in sound:
        notes.skip(f"{CONFIG_NAME} is not the recorded one", "settings")
        return
    try:
        found: dict[str, Any] = read_yaml(out / CONFIG_NAME)
    except InvalidInput:
        notes.find("settings", f"{CONFIG_NAME} cannot be read.")
        return
    found.pop("out", None)
    compare_settings(found, manifest, CONFIG_NAME, notes)


def compare_settings(found: Any, manifest: Manifest, where: str, notes: Notes) -> None:
    """Hold a copy of the settings against those in the manifest."""
    copies = notes.checked.get("settings")
    notes.checked["settings"] = f"{copies}, {where}" if copies else where
    if json.dumps(found, sort_keys=True, default=str) != json.dumps(
        manifest.settings, sort_keys=True
    ):
        name = _first_difference(found, manifest.settings)
        notes.find("settings", f"The settings in {where} and in manifest.json differ in {name}.")


def _first_difference(found: Any, wanted: Any, path: str = "") -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*wanted, *(key for key in found if key not in wanted)]:
            if key not in found or key not in wanted or found[key] != wanted[key]:
                nested = f"{path}.{key}" if path else str(key)
                return _first_difference(found.get(key), wanted.get(key), nested)
    return path
