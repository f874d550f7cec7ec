"""What figures were made on and with, for every result file."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

_CPUINFO = Path("/proc/cpuinfo")
_TELLING = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
"""Instruction sets that decide how fast matrix products are, the fastest first."""


def describe_machine(*packages: str) -> dict[str, Any]:
    """Date, processor, cores, and versions of Python, curate and the packages named."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("curate", *packages)},
    }


def code_version() -> str:
    """Git's name for the content of `curate/`, `-dirty` where files differ; empty outside git."""
    try:
        name = _git("rev-parse", "--short", "HEAD:curate")
        return f"{name}-dirty" if _git("status", "--porcelain", "--", "curate") else name
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    """The processor's name and its widest instruction set, where the system tells."""
    if not _CPUINFO.exists():
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in _CPUINFO.read_text().splitlines())
    known = {key.strip(): value.strip() for key, _, value in lines}
    flags = known.get("flags", "").split()
    name = known.get("model name") or platform.machine()
    return ", ".join([name, *[one for one in _TELLING if one in flags][:1]])
