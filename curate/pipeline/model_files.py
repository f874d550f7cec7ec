"""What tells a pretrained model from another of the same name."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from curate.files import sha256_file
from curate.train.model import PRESETS

_PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
)
"""The weights, the shape and the tokenizer in a folder of a model."""


def model_files(name: str) -> list[dict[str, Any]]:
    """The files of a model's folder by name, size and SHA-256, or its commit on the Hub.

    Args:
        name: `model.name`; a preset has none, nor has a model of the Hub that is not in its cache.
    """
    if name in PRESETS:
        return []
    folder = Path(name)
    if not folder.is_dir():
        config = try_to_load_from_cache(name, "config.json")
        commit = Path(config).parent.name if isinstance(config, str) else None
        return [{"name": "commit", "fingerprint": commit}] if commit else []
    files = {file for pattern in _PATTERNS for file in folder.glob(pattern) if file.is_file()}
    return [_file(file) for file in sorted(files)]


def _file(path: Path) -> dict[str, Any]:
    found = path.stat()
    digest = _digest(path.absolute(), found.st_size, found.st_mtime_ns)
    return {"name": path.name, "bytes": found.st_size, "fingerprint": digest}


@functools.lru_cache
def _digest(path: Path, size: int, modified: int) -> str:  # a run asks twice as it starts
    return sha256_file(path)
