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

from curate.errors import OutputConflict

LOCK = Path("state") / "lock"
"""Where it lies in an output folder."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an output folder, which is made if it is not there.

    File systems without locks are used without one.

    Raises:
        OutputConflict: another process holds it.
    """
    path = folder / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputConflict(
                f"The output folder {folder} is in use by {_holder(path)}.",
                "Wait until it is done or stop it, or give another folder with --out.",
            ) from None
        except OSError:
            yield
            return
        file.truncate(0)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        json.dump({"process": os.getpid(), "host": socket.gethostname(), "since": since}, file)
        file.flush()
        yield


def _holder(path: Path) -> str:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return f"process {found['process']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
