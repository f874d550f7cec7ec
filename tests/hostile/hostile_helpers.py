"""What an attacker prepares: names, values, a storage that asks for a password, and snapshots."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.spec import AbstractFileSystem
from run_helpers import Run, words

PASSWORD, SIGNATURE = "pAssw0rd/planted", "s1gnature-planted"
LOGIN = f"user:{PASSWORD}@"
ENVIRONMENT = {
    "AWS_SECRET_ACCESS_KEY": "aws-planted-secret",
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED",
    "HF_TOKEN": "hf_plantedtoken",
}
SECRETS = (*PASSWORD.split("/"), SIGNATURE, *ENVIRONMENT.values())

VALUES = (
    "'; DROP TABLE document; --",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "[x](javascript:alert(1)) ![y](https://evil.example/y.png) www.evil.example",
    "a|b`c\n\n---\n# d\n<b>e</b>",
    "\x1b[2J\x1b]0;owned\x07\r\b\x9b31m",
    "\u202egnp.exe\u2066",
    "../../../../etc/passwd",
    "{style} %s ${HOME}",
)
"""Values of every metadata column: SQL, HTML, Markdown, terminal codes, direction marks, paths."""

NAMES = (
    "<img src=x onerror=alert(1)>",
    "---\nname: |\n  `",
    'a"b',
    "c'); DROP TABLE document; --",
    "\x1b[31mred\x9b\u202e",
    "../../up",
    "",
    "select",
    "SELECT",
    "document_id",
    "Tokens",
    "tokens",
    "value",
    "rowid",
    "nul\0byte",
    "x" * 2000,
    "Grüße 日本",
)
"""Names of the metadata columns."""


def hostile_table(rows: int = 40) -> pa.Table:
    """Documents beside every hostile name; column after column the values are turned by one."""
    random = np.random.default_rng(3)
    texts = [f"{words(random, 6)} {VALUES[row % len(VALUES)]}" for row in range(rows)]
    columns = [
        pa.array([VALUES[(row + turn) % len(VALUES)] for row in range(rows)])
        for turn in range(len(NAMES))
    ]
    return pa.table([pa.array(texts), *columns], names=["text", *NAMES])


def write_inputs(folder: Path) -> Path:
    """The hostile pool and a target under `folder`; returns `folder`."""
    folder.mkdir(parents=True)
    pq.write_table(hostile_table(), folder / "pool.parquet")
    random = np.random.default_rng(4)
    target = pa.table({"text": [words(random, 9) for _ in range(9)]})
    pq.write_table(target, folder / "target.parquet")
    return folder


class Vault(AbstractFileSystem):
    """Files that only an address with the password or the signature opens; http keeps addresses
    whole as this does.
    """

    protocol = "vault"
    folder = Path()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path

    def unstrip_protocol(self, name: str) -> str:
        return name

    def info(self, path: str, **_: object) -> dict[str, object]:
        return {"name": path, "size": self._file(path).stat().st_size, "type": "file"}

    def _open(self, path: str, mode: str = "rb", **_: object) -> BinaryIO:
        return self._file(path).open("rb")

    def _file(self, path: str) -> Path:
        place, _, query = path.partition("?")
        if LOGIN not in place and query != f"sig={SIGNATURE}":
            raise PermissionError(f"no access to {path} with the key given")
        file = self.folder / place.rpartition("/")[2]
        if not file.is_file():
            raise FileNotFoundError(path)
        return file


@dataclass(frozen=True)
class Attacked(Run):
    """A run whose pool and target carry credentials in their addresses, and what it printed."""

    arguments: list[str]
    printed: str


class Payload:
    """Writes its marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")
