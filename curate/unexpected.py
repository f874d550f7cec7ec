"""What nobody foresaw, as two sentences and a file with the details.

The details (traceback, versions, command line) go to the folder for temporary files, since the
output may be what failed. Whatever is shown or written has no credentials in it, and environment
variables are never written.
"""

from __future__ import annotations

import os
import platform
import tempfile
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from curate.errors import CurateError, is_of_memory

_PACKAGES = ("curate", "torch", "pyarrow", "duckdb", "transformers", "datasets")
_GOES_ON = {
    "run": "start anew in another folder with a lower compute.microbatch_tokens, a smaller model "
    "or fewer compute.threads",
    "evaluate": "use a smaller --model or fewer --threads",
}
"""Verbs that have checkpoints, and what makes them need less memory."""


class OutOfMemory(CurateError):
    """The machine or the device had no memory left."""


def foreseen(error: Exception, verb: str | None) -> CurateError | None:
    """What to say of an exception that is of the machine and not of the program, or None.

    Args:
        error: an exception that no part of curate raised on purpose.
        verb: the verb that met it.
    """
    if not is_of_memory(error):
        return None
    named = any(name in str(error) for name in ("CUDA", "CUBLAS", "HIP"))
    where = "device" if named or type(error).__module__.startswith("torch") else "machine"
    less = f" to go on, or {_GOES_ON[verb]}" if verb in _GOES_ON else ""
    return OutOfMemory(
        f"The {where} ran out of memory.",
        f"Close other programs and run the same command again{less}.",
    )


def report(error: Exception, verb: str | None, arguments: Sequence[str]) -> CurateError:
    """Write an exception's details to a file and say where that is.

    Args:
        error: an exception that nobody foresaw.
        verb: the verb that met it.
        arguments: the command line.
    """
    problem = f"curate met a failure it does not know ({_named(error)})."
    try:
        place = f"with the file {_write(_details(error, arguments))}, which holds the details"
    except Exception as second:
        place = f"as it stands; its details could not be written ({_named(second)})"
    on = (
        "; the same command goes on from the last checkpoint, if there is one"
        if verb in _GOES_ON
        else ""
    )
    return CurateError(problem, f"Report it {place}{on}.")


def _named(error: Exception) -> str:
    """The class of an exception and the first sentence of its text, without credentials."""
    name = type(error).__name__
    try:
        from curate.read.locate import short_reason  # noqa: PLC0415 (may be what is broken)

        return f"{name}: {short_reason(error)}" if str(error).strip() else name
    except Exception:
        return name


def _details(error: Exception, arguments: Sequence[str]) -> str:
    from curate.read.locate import display_uri, without_credentials  # noqa: PLC0415

    trace = "".join(traceback.format_exception(error))
    lines = [
        "command: " + " ".join(map(display_uri, arguments)),
        f"python {platform.python_version()} on {platform.platform()}",
        *(f"{name} {_version(name)}" for name in _PACKAGES),
    ]
    return without_credentials("\n".join([*lines, "", trace]))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _write(text: str) -> Path:
    """Write a new file that only its owner may read; returns its path."""
    descriptor, name = tempfile.mkstemp(prefix="curate-failure-", suffix=".txt")
    os.close(descriptor)
    place = Path(name)
    try:
        place.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError:
        place.unlink(missing_ok=True)
        raise
    return place
