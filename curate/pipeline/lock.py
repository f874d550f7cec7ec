"""One process at a time on an output folder.

The lock is the operating system's, on `state/lock`, so it ends with the process that holds it,
however that ends. The file's text says who that is.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from curate.errors import OutputConflict
from curate.refusal import held, writing

LOCK = Path("state") / "lock"
"""Where it lies in an output folder."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an output folder, which is made if it is not there.

    File systems without locks are used without one.

    Raises:
        OutputConflict: another process holds it.
        OutputFailed: it cannot be made or written to.
    """
    path = folder / LOCK
    with contextlib.ExitStack() as stack:
        with writing(folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("ab", buffering=0))
            if _taken(file, folder):
                _sign(file)
        stack.enter_context(held(folder, path))
        yield


def _taken(file: IO[bytes], folder: Path) -> bool:
    """Take the lock; False where the file system has none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputConflict(
            f"The output folder {folder} is in use by {_holder(folder / LOCK)}.",
            "Wait until it is done or stop it, or give another folder with --out.",
        ) from None
    except OSError:
        return False
    return True


def _sign(file: IO[bytes]) -> None:
    """Write down who holds the lock."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    holder = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
    file.truncate(0)
    file.write(json.dumps(holder).encode())


def _holder(path: Path) -> str:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return f"process {found['process']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
