"""Find the shard files behind what the user typed, and show them without their credentials.

A source is a file, a folder, a glob, or any of these as an fsspec URL. `locate` turns it into
`Located` files in the sorted order of their uri. Two forms of an address are kept apart on purpose:
the path that opens a file, which may carry a login or a signed query, and the uri that manifests,
logs and errors show, which never does (`display_uri`). Symbolic links on a local disk are followed,
but where they lead back up.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.parse import unquote

import fsspec
import fsspec.core
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from curate.errors import DamagedShard, InvalidInput
from curate.read.remote import RemoteStream

EDGE_BYTES = 64 * 1024
"""Bytes read from each end of a file for its fingerprint."""

_FORMATS = {
    ".parquet": ("parquet", None),
    ".jsonl": ("jsonl", None),
    ".ndjson": ("jsonl", None),
    ".jsonl.gz": ("jsonl", "gzip"),
    ".ndjson.gz": ("jsonl", "gzip"),
    ".jsonl.zst": ("jsonl", "zstd"),
    ".ndjson.zst": ("jsonl", "zstd"),
}
_PROTOCOLS = fsspec.available_protocols()
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_BUFFERED = frozenset({"s3", "s3a", "gs", "gcs", "http", "https", "abfs", "abfss", "az", "hf"})
_LOCAL = frozenset({"file", "local"})
_GLOB = re.compile(r"[*?\[]")
_AZURE = frozenset({"abfs", "abfss", "wasb", "wasbs"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """One shard file: how to open it (`fs`, `path`) and how to show it (`uri`)."""

    fs: Any
    path: str
    uri: str
    format: str
    codec: str | None

    @property
    def is_local(self) -> bool:
        """Whether `path` can be opened without fsspec."""
        return isinstance(self.fs, LocalFileSystem)

    def open(self, *, ranged: bool) -> BinaryIO:
        """Open for reading; `ranged` fetches exactly the bytes asked for, with no read-ahead.

        Raises:
            InvalidInput: remote storage is out of reach, now or as the stream is read.
        """
        if self.is_local:
            return cast(BinaryIO, self.fs.open(self.path, "rb"))
        protocol = self.fs.protocol if isinstance(self.fs.protocol, str) else self.fs.protocol[0]
        options = {"cache_type": "none"} if ranged and protocol in _BUFFERED else {}
        try:
            stream = self.fs.open(self.path, "rb", **options)
        except Exception as error:  # every storage backend has exceptions of its own
            raise _out_of_reach(self, error) from None
        return cast(BinaryIO, RemoteStream(stream, functools.partial(_out_of_reach, self)))


def locate(source: str, role: str) -> list[Located]:
    """Return the shard files of `source`, sorted by uri; they may be of several formats.

    Raises:
        InvalidInput: the path is not there, holds no shards, or its storage cannot be reached.
    """
    fs, path = connect(source, role)
    try:
        names = _names(fs, path)
    except FileNotFoundError:
        raise missing_path(source, role) from None
    except Exception as error:  # every storage backend has exceptions of its own
        raise _unreadable(source, role, error) from None
    files = [file for name in names if (file := _located(fs, name)) is not None]
    if not files:
        raise InvalidInput(
            f"No shards were found for the {role} in {display_uri(source)}.",
            "Give a path with .parquet, .jsonl, .jsonl.gz or .jsonl.zst files in it.",
        )
    return sorted(files, key=lambda file: file.uri)


def takes_in(source: str, file: Path) -> bool:
    """Whether a local Parquet file would be a shard of `source`, now or once it is written."""
    scheme, separator, _ = source.partition("://")
    if separator and scheme.lower() not in _LOCAL:
        return False
    path = Path(_absolute(LocalFileSystem._strip_protocol(source)))
    file = file.expanduser().absolute().resolve()
    if path.exists() or not _GLOB.search(str(path)):
        return path.is_dir() and file.is_relative_to(path.resolve())
    fixed = next(index for index, part in enumerate(path.parts) if _GLOB.search(part))
    root, pattern = Path(*path.parts[:fixed]).resolve(), path.parts[fixed:]
    if not file.is_relative_to(root):
        return False
    parts = file.relative_to(root).parts
    for wanted, part in zip(pattern, parts, strict=False):
        if "**" in wanted:
            return True
        if not fnmatch.fnmatchcase(part, wanted):
            return False
    return len(pattern) <= len(parts)  # what lies in a folder that matches is taken too


def connect(source: str, role: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of `source` and the path in it; local paths become absolute.

    Raises:
        InvalidInput: the protocol is unknown, its package is not installed, or there is no way to
            the storage.
    """
    url, options = _split_s3_login(source)
    try:
        fs, path = fsspec.core.url_to_fs(url, **options)
        path = _absolute(path) if isinstance(fs, LocalFileSystem) else str(path)
    except ImportError as error:
        extra = _EXTRAS.get(source.rsplit("::", maxsplit=1)[-1].partition("://")[0])
        remedy = f"Run: pip install 'curate[{extra}]'." if extra else f"{str(error).rstrip('.')}."
        raise InvalidInput(
            f"The {role} {display_uri(source)} needs a storage package that is not installed.",
            remedy,
        ) from None
    except ValueError as error:
        raise InvalidInput(
            f"The {role} address {display_uri(source)} is not usable ({short_reason(error)}).",
            "Give a local path or a URL that fsspec knows, such as s3://bucket/folder.",
        ) from None
    except Exception as error:  # every storage backend has exceptions of its own
        raise _unreadable(source, role, error) from None
    return fs, path


def _unreadable(source: str, role: str, error: Exception) -> InvalidInput:
    return InvalidInput(
        f"The {role} path {display_uri(source)} cannot be read ({short_reason(error)}).",
        "Check the address and your access to it.",
    )


def missing_path(source: str, role: str) -> InvalidInput:
    """The error for a source that is not there."""
    return InvalidInput(
        f"The {role} path does not exist: {display_uri(source)}.",
        "Check the spelling, or give a Parquet or JSONL file, a folder, a glob, a URL or hf:NAME.",
    )


def display_uri(url: str) -> str:
    """Return `url` without user name, password and query; local paths come back unchanged.

    A raw slash in a password (common in S3 secrets) is understood. In URLs other than http(s) a
    `?` starts a query only when a `=` follows, since it may be a glob character, and never inside
    a login. A `::` chains links only in front of a protocol that fsspec knows, and never inside a
    query.
    """
    before, separator, rest = url.partition("://")
    if not separator:
        return url
    login = len(before) + len(separator) + _login_end(rest)
    web = before.lower().endswith(("http", "https"))
    query = re.compile(r"\?" if web else r"\?[^?]*=|(?<=http)s?://[^?]*\?").search(url, login)
    head = url[: url.index("?", query.start())] if query else url
    links = re.split(rf"::(?=(?:{'|'.join(map(re.escape, _PROTOCOLS))})(?:://|::))", head)
    return "::".join(_strip_secrets(link) for link in links)


def without_credentials(text: str) -> str:
    """A text with every URL in it as `display_uri` shows it."""
    address = r"[A-Za-z][\w+.-]*://[^\s\"<>]*[^\s\"'<>]"
    return re.sub(address, lambda found: display_uri(found[0]), text)


def short_reason(error: BaseException) -> str:
    """The first sentence of an error of another library, bounded in length, free of credentials."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    sentence = without_credentials(lines[0]).split(". ")[0].strip().rstrip(".")
    return sentence if len(sentence) <= 160 else f"{sentence[:157]}..."


def shard_error(file: Located, error: BaseException, kind: str) -> InvalidInput:
    """The error for a shard that is out of reach, or a DamagedShard: not a readable `kind` file."""
    if isinstance(error, InvalidInput):  # remote storage is known to be out of reach
        return error
    if _is_damage(error):
        return DamagedShard(
            f"Shard {file.uri} is not a readable {kind} file ({short_reason(error)}).",
            "Repair or remove the shard.",
        )
    return _out_of_reach(file, error)


def _out_of_reach(file: Located, error: BaseException) -> InvalidInput:
    return InvalidInput(
        f"Shard {file.uri} cannot be opened ({short_reason(error)}).",
        "Check that it is there and that you may read it.",
    )


def _is_damage(error: BaseException) -> bool:
    """Whether an error is about the bytes of a file, and not about getting them.

    Decoders raise Arrow's errors, ValueErrors and bare OSErrors; the local disk raises OSErrors
    with a number and their subclasses. What remote storage raises does not come here.
    """
    if isinstance(error, OSError):
        return type(error) is OSError and error.errno is None
    return isinstance(error, pa.ArrowException | ValueError)


def measure(stream: BinaryIO) -> tuple[int, str]:
    """Return (size in bytes, fingerprint): sha256 hex over the size and both ends of the file."""
    size = stream.seek(0, 2)
    digest = hashlib.sha256(str(size).encode())
    for start in (0, max(0, size - EDGE_BYTES)):
        stream.seek(start)
        digest.update(stream.read(EDGE_BYTES))
    stream.seek(0)
    return size, digest.hexdigest()


def fingerprint_now(file: Located, kind: str) -> str:
    """The fingerprint of a shard file as it is now.

    Raises:
        InvalidInput: it is out of reach.
    """
    try:
        with file.open(ranged=True) as stream:
            return measure(stream)[1]
    except Exception as error:  # every storage backend has exceptions of its own
        raise shard_error(file, error, kind) from None


def _names(fs: Any, path: str) -> list[str]:
    """Paths of all visible files under a file, folder or glob."""
    try:
        info = fs.info(path)
    except FileNotFoundError:
        if not _GLOB.search(display_uri(path)):
            raise
        return _glob(fs, path)
    return _visible(_find(fs, path), path) if _is_folder(fs, path, info) else [path]


def _glob(fs: Any, pattern: str) -> list[str]:
    """Files that match, and the files in the folders that match."""
    if isinstance(fs, LocalFileSystem):
        return _local_glob(pattern)
    names: set[str] = set()
    for name, info in fs.glob(pattern, detail=True).items():
        names.update(_find(fs, name) if _is_folder(fs, name, info) else [name])
    return _visible(names, _GLOB.split(pattern)[0].rpartition("/")[0])


def _local_glob(pattern: str) -> list[str]:
    """The same without hidden ones, looking only into folders that can hold some."""
    every = Path(pattern).parts
    fixed = next(index for index, part in enumerate(every) if _GLOB.search(part))
    top, wanted = str(Path(*every[:fixed])), every[fixed:]

    def is_taken(path: str) -> bool:
        parts = Path(path).relative_to(top).parts
        return any(_matches(parts[:depth], wanted) for depth in range(1, len(parts) + 1))

    def can_hold(folder: str) -> bool:
        parts = Path(folder).relative_to(top).parts
        return is_taken(folder) or _matches(parts, wanted, begun=True)

    return [path for path in _walk(top, can_hold) if is_taken(path)]


def _matches(parts: Sequence[str], wanted: Sequence[str], *, begun: bool = False) -> bool:
    """Whether names of a path are what the parts of a glob want, `**` being any number of names.

    Args:
        parts: the names.
        wanted: the parts of the glob.
        begun: whether it is enough that more names could follow which make it so.
    """
    if not wanted:
        return not parts
    if wanted[0] == "**":
        ends = range(len(parts) + 1)
        return begun or any(_matches(parts[end:], wanted[1:]) for end in ends)
    if not parts:
        return begun
    matches = fnmatch.fnmatchcase(parts[0], wanted[0])
    return matches and _matches(parts[1:], wanted[1:], begun=begun)


def _find(fs: Any, folder: str) -> list[str]:
    """Files in a folder, at any depth, but for hidden ones on a local disk."""
    if isinstance(fs, LocalFileSystem):
        return _walk(folder, lambda folder: True)
    found: list[str] = fs.find(folder)
    return found


def _walk(folder: str, enters: Callable[[str], bool]) -> list[str]:
    """Files below a local folder, in the folders that are entered, but for hidden ones.

    fsspec leaves out folders that it may not read and those that are links. Here the first are
    errors, and links are followed but where they lead back up.
    """
    names: list[str] = []
    waiting: list[tuple[str, tuple[str, ...]]] = [(folder, (os.path.realpath(folder),))]
    while waiting:
        place, above = waiting.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name[0] in "._":
                    continue
                if not entry.is_dir():
                    names.append(entry.path)
                elif enters(entry.path) and (real := os.path.realpath(entry.path)) not in above:
                    waiting.append((entry.path, (*above, real)))
    return names


def _is_folder(fs: Any, path: str, info: dict[str, Any]) -> bool:
    """Whether a listed name is a folder or a link to one; http has no folders but by a slash."""
    kind = info["type"]
    return kind == "directory" or path.endswith("/") or (kind != "file" and bool(fs.isdir(path)))


def _visible(names: Iterable[str], root: str) -> list[str]:
    """Names without those that have a part below `root` starting with a dot or an underscore."""
    below = {name: PurePosixPath(name.removeprefix(root)).parts for name in names}
    return [name for name, parts in below.items() if not any(p[0] in "._" for p in parts)]


def _located(fs: Any, path: str) -> Located | None:
    """The shard at `path`, or None where its name has no known ending."""
    uri = path if isinstance(fs, LocalFileSystem) else display_uri(str(fs.unstrip_protocol(path)))
    for suffix, (kind, codec) in _FORMATS.items():
        if uri.lower().endswith(suffix):
            if uri != uri.encode(errors="replace").decode():
                name = ascii(uri).strip("'")
                raise InvalidInput(f"The name of shard {name} is not UTF-8.", "Rename the file.")
            return Located(fs=fs, path=path, uri=uri, format=kind, codec=codec)
    return None


def _absolute(path: str) -> str:
    """An absolute path with `..` resolved; links after the last `..` keep their names."""
    parts = Path(path).expanduser().absolute().parts
    ups = [index for index, part in enumerate(parts) if part == ".."]
    cut = ups[-1] + 1 if ups else 0
    return str(Path(*parts[:cut]).resolve().joinpath(*parts[cut:]) if cut else Path(*parts))


def _login_end(rest: str) -> int:
    """Length of the `user:password@` that starts `rest` (a URL after `://`), else 0."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        return authority.rindex("@") + 1
    _, colon, port = authority.partition(":")
    is_host = port.isdigit() or authority.startswith("[")
    return rest.find("@") + 1 if colon and not is_host else 0


def _strip_secrets(url: str) -> str:
    given, separator, rest = url.partition("://")
    scheme = given.lower()
    if not separator or scheme in _LOCAL:
        return url
    end = _login_end(rest)
    if scheme not in _AZURE or ":" in rest[:end]:  # abfs://container@account is not a login
        rest = rest[end:]
    if scheme in {"http", "https"}:
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    elif scheme != "memory":
        rest = re.sub(r"\?[^?]*=.*$", "", rest, flags=re.DOTALL)
    return f"{given}://{rest}"


def _split_s3_login(url: str) -> tuple[str, dict[str, str]]:
    """Move a login in an S3 URL into the options s3fs takes, as s3fs does not read it itself."""
    scheme, _, rest = url.partition("://")
    end = _login_end(rest)
    if scheme not in {"s3", "s3a"} or not end:
        return url, {}
    key, _, secret = rest[: end - 1].partition(":")
    return f"{scheme}://{rest[end:]}", {"key": unquote(key), "secret": unquote(secret)}
