"""Harvest a real demo corpus from the Python installation that runs this script.

Usage::

    python examples/harvest_python.py demo/corpus [--megabytes 6] [--shards 4] [--seed 0]

Nothing is downloaded and no harvested module is imported (but ``pydoc_data.topics``, a dictionary
of strings). Written under the folder:

``pool/shard-0000N.parquet``
    The raw corpus: about ``megabytes`` MB of documents of 200 to 6,000 characters, of the kinds
    in ``KINDS``, each held to its share, shuffled by ``seed``.
``target.parquet`` and ``test.parquet``
    The Python language reference, as ``help("yield")`` prints it: its topics are dealt out to the
    two files, about half each, as documents of whole paragraphs, 200 to 2,000 characters.

Every file has the text columns ``id``, ``text``, ``source`` (the kind) and ``path`` (relative to
the standard library, to site-packages or to the include folder).

No test document shares a run of 13 words with a target document, no pool document shares one with
either, and no text occurs twice. The result is the same for the same installation and arguments.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import inspect
import os
import random
import re
import sys
import sysconfig
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

TARGET_KIND = "language-reference"
RELATED_KINDS = ("docstrings", "package-readme")
"""The kinds of the pool that are prose about Python, as the target is: what should be kept."""

RUN_WORDS = 13
POOL_CHARS = (200, 6000)
TARGET_CHARS = (200, 2000)

PIECES_PER_TURN = 4
"""A file gives this many documents before other files have had their turn."""
FILES_PER_FOLDER = 60
"""Folders of generated near-copies (torch's headers hold thousands) give no more files."""
MAX_SHARE = 0.3
MAX_FILE_BYTES = 4_000_000
MIN_KINDS = 5

_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "text", "source", "path")])
_WORD = re.compile(r"\w+")
_BLANK = re.compile(r"\n[ \t]*\n")
_LICENSE = re.compile(r"(licen[cs]e|notice|copying|authors)", re.IGNORECASE)
_NOT_STDLIB = {"site-packages", "dist-packages", "pydoc_data", "__pycache__"}
_TESTS = {"test", "tests", "testing", "idle_test", "_testing"}
_OWN = re.compile(r"curate[-/]|__editable__")


class Document(NamedTuple):
    """One row of the corpus."""

    id: str
    text: str
    source: str
    path: str


class Found(NamedTuple):
    """One file of the installation."""

    root: str
    base: Path
    path: str

    @property
    def parts(self) -> tuple[str, ...]:
        """The folders and the name of the file below its root."""
        return tuple(self.path.split("/"))

    @property
    def is_test(self) -> bool:
        """Whether the file belongs to a test suite."""
        return not _TESTS.isdisjoint(self.parts[:-1]) or self.parts[-1].startswith("test_")

    @property
    def is_metadata(self) -> bool:
        """Whether the file describes an installed package."""
        return ".dist-info/" in self.path or ".egg-info/" in self.path


class Kind(NamedTuple):
    """One value of ``source``: its share of the pool, its files and how they become texts."""

    name: str
    share: float
    accepts: Callable[[Found], bool]
    split: Callable[[str], Iterable[str]]
    filler: bool = False
    """Whether the kind may grow (to ``MAX_SHARE``) where others fall short of their share."""


# --- Reading -------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """Return the words of a text as the overlap rule sees them."""
    return _WORD.findall(text.lower())


def runs(text: str) -> set[str]:
    """Return every run of ``RUN_WORDS`` words in a text."""
    found = words(text)
    return {" ".join(found[i : i + RUN_WORDS]) for i in range(len(found) - RUN_WORDS + 1)}


def _hash(*parts: object) -> int:
    digest = hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big")


def _read(file: Found) -> str | None:
    """Return the text of a file, or None where it is unreadable, huge or not plain UTF-8."""
    try:
        full = file.base / file.path
        if full.stat().st_size > MAX_FILE_BYTES:
            return None
        text = full.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return None
    return None if "\0" in text else text.replace("\r\n", "\n").replace("\r", "\n")


def cut_lines(text: str) -> Iterator[str]:
    """Cut a text at line boundaries into pieces of ``POOL_CHARS`` characters.

    The length of the pieces varies from text to text, but depends on the text alone, so that
    copies of one file become copies of the same documents, which the duplicate rule then drops.
    """
    low, high = POOL_CHARS
    limit = 1000 + _hash(text) % (high - 1000 + 1)
    for piece in _packed(text.split("\n"), "\n", limit):
        stripped = piece.strip("\n")
        if len(stripped) >= low:
            yield stripped


def _packed(units: Iterable[str], glue: str, limit: int) -> Iterator[str]:
    """Join neighbouring units into pieces up to the limit; a unit too long is left out."""
    piece: list[str] = []
    size = 0
    for unit in units:
        if size + len(unit) + len(glue) * bool(piece) > limit:
            if piece:
                yield glue.join(piece)
            piece, size = [], 0
            if len(unit) > limit:
                continue
        size += len(unit) + len(glue) * bool(piece)
        piece.append(unit)
    if piece:
        yield glue.join(piece)


def docstrings(source: str) -> Iterator[str]:
    """Yield the docstrings of a module's source that are long enough, without importing it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text and len(text) >= POOL_CHARS[0] and "\0" not in text:
                yield from cut_lines(inspect.cleandoc(text))


def _description(metadata: str) -> Iterator[str]:
    """Yield the pieces of a package's README: the body below the headers of its metadata."""
    return cut_lines(metadata.partition("\n\n")[2])


def _records(lines: str) -> Iterator[str]:
    """Yield the pieces of a package's list of files.

    Left out are scripts, whose line has their place, and what not every installer compiles.
    """
    told = (
        one for one in lines.split("\n") if not (one.startswith("../") or "__pycache__/" in one)
    )
    return cut_lines("\n".join(told))


def _is_charmap(file: Found) -> bool:
    return file.root == "stdlib" and file.parts[0] == "encodings"


def _charmap(source: str) -> Iterator[str]:
    """Yield the pieces of a character table, leaving out codecs written as code."""
    tables = ("decoding_table = (", "decoding_map = codecs.make_identity_dict")
    return cut_lines(source) if any(table in source for table in tables) else iter(())


def _code(root: str, suffix: str) -> Callable[[Found], bool]:
    def accepts(file: Found) -> bool:
        plain = not (file.is_test or file.is_metadata or _is_charmap(file))
        return file.root == root and file.path.endswith(suffix) and plain

    return accepts


KINDS = (
    Kind("stdlib-code", 0.18, _code("stdlib", ".py"), cut_lines, filler=True),
    Kind("package-code", 0.18, _code("site", ".py"), cut_lines, filler=True),
    Kind("test-code", 0.10, lambda f: f.is_test and f.path.endswith(".py"), cut_lines, filler=True),
    Kind("type-stubs", 0.10, _code("site", ".pyi"), cut_lines, filler=True),
    Kind("c-headers", 0.10, lambda f: f.path.endswith((".h", ".hpp")), cut_lines, filler=True),
    Kind("docstrings", 0.07, _code("stdlib", ".py"), docstrings),
    Kind(
        "package-readme",
        0.07,
        lambda f: f.path.endswith((".dist-info/METADATA", ".egg-info/PKG-INFO")),
        _description,
    ),
    Kind(
        "licenses",
        0.07,
        lambda f: bool(_LICENSE.match(f.parts[-1])) and not f.path.endswith((".py", ".pyi", ".h")),
        cut_lines,
    ),
    Kind("encoding-tables", 0.06, lambda f: _is_charmap(f) and f.path.endswith(".py"), _charmap),
    Kind("package-records", 0.04, lambda f: f.path.endswith(".dist-info/RECORD"), _records),
    Kind(
        "data-files",
        0.03,
        lambda f: f.path.endswith((".csv", ".json", ".tsv")) and not f.is_metadata,
        cut_lines,
    ),
)


def installation() -> list[Found]:
    """List the files of this Python installation, sorted."""
    paths = sysconfig.get_paths()
    roots = [
        ("stdlib", paths["stdlib"], _NOT_STDLIB),
        ("site", paths["purelib"], {"__pycache__"}),
        ("site", paths["platlib"], {"__pycache__"}),
        ("include", paths["include"], set[str]()),
    ]
    found: dict[tuple[str, str], Found] = {}
    for root, base, skipped in roots:
        for folder, folders, names in os.walk(base):
            folders[:] = [name for name in folders if name not in skipped]
            relative = Path(folder).relative_to(base)
            for name in names:
                path = (relative / name).as_posix()
                # This project itself changes from one day to the next: it is no part of the corpus.
                if not _OWN.match(path):
                    found.setdefault((root, path), Found(root, Path(base), path))
    return [found[key] for key in sorted(found)]


# --- The target ----------------------------------------------------------------------------------


def language_reference() -> tuple[list[Document], list[Document]]:
    """Return the target and the test documents, which share no run of words."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        message = "This Python has no pydoc_data.topics (the language reference), the demo's target"
        raise RuntimeError(message) from error

    # Long topics (compound, types, specialnames) repeat short ones: a paragraph stays in the
    # shortest topic that has it, so that the two halves have little in common from the start.
    seen: set[tuple[str, ...]] = set()
    documents: dict[str, list[Document]] = {}
    for topic in sorted(topics, key=lambda name: (len(topics[name]), name)):
        documents[topic] = list(_topic_documents(topic, topics[topic], seen))

    # In an order given by a stable hash, each topic goes to the half that is shorter so far.
    halves: tuple[list[Document], list[Document]] = ([], [])
    for topic in sorted(documents, key=lambda name: (_hash("topic", name), name)):
        min(halves, key=_text_bytes).extend(documents[topic])
    target, test = halves
    known = set[str]().union(*(runs(document.text) for document in target))
    return target, [document for document in test if known.isdisjoint(runs(document.text))]


def _topic_documents(topic: str, text: str, seen: set[tuple[str, ...]]) -> Iterator[Document]:
    low, high = TARGET_CHARS
    fresh: list[str] = []
    for paragraph in _BLANK.split(text.replace("\r\n", "\n")):
        key = tuple(words(paragraph))
        if key and key not in seen:
            seen.add(key)
            fresh.append(paragraph.strip("\n"))
    for index, piece in enumerate(_packed(fresh, "\n\n", high)):
        if len(piece) >= low:
            path = f"pydoc_data/topics.py#{topic}"
            yield Document(f"{TARGET_KIND}:{topic}#{index}", piece, TARGET_KIND, path)


# --- The pool ------------------------------------------------------------------------------------


def _candidates(kind: Kind, files: Iterable[Found], seed: int) -> Iterator[Document]:
    """Yield a kind's documents in seeded order, a few of each file per turn."""
    order = sorted((_hash(seed, kind.name, f.root, f.path), f) for f in files if kind.accepts(f))
    per_folder: dict[tuple[str, str], int] = {}
    waiting: list[list[Document]] = []
    for _, file in order:
        folder = (file.root, file.path.rpartition("/")[0])
        per_folder[folder] = per_folder.get(folder, 0) + 1
        # A flat standard library is one folder of different modules: only packages are capped.
        capped = file.root != "stdlib" and not file.is_metadata
        text = None if capped and per_folder[folder] > FILES_PER_FOLDER else _read(file)
        if text is None:
            continue
        name = f"{kind.name}:{file.root}/{file.path}"
        documents = [
            Document(f"{name}#{index}", piece, kind.name, file.path)
            for index, piece in enumerate(kind.split(text))
        ]
        documents.sort(key=lambda document: (_hash(seed, document.id), document.id))
        yield from documents[:PIECES_PER_TURN]
        waiting.append(documents[PIECES_PER_TURN:])
    while waiting:
        for documents in waiting:
            yield from documents[:PIECES_PER_TURN]
        waiting = [rest for documents in waiting if (rest := documents[PIECES_PER_TURN:])]


class _Filter:
    """Lets a pool document pass when it is new and shares no run with the target or the test."""

    def __init__(self, reserved: Collection[Document]) -> None:
        self._runs = set[str]().union(*(runs(document.text) for document in reserved))
        self._texts = {document.text for document in reserved}
        self.duplicates = 0
        self.overlaps = 0

    def passes(self, document: Document) -> bool:
        if document.text in self._texts:
            self.duplicates += 1
            return False
        if not self._runs.isdisjoint(runs(document.text)):
            self.overlaps += 1
            return False
        self._texts.add(document.text)
        return True


def _take(documents: Iterator[Document], room: float, keep: _Filter) -> list[Document]:
    """Take passing documents until the next one would not fit into the room, in bytes."""
    taken: list[Document] = []
    for document in documents:
        size = _text_bytes([document])
        if size > room:
            break
        if keep.passes(document):
            taken.append(document)
            room -= size
    return taken


def _pool(files: list[Found], size: float, seed: int, keep: _Filter) -> dict[str, list[Document]]:
    """Return the documents of each kind, ``size`` bytes in all where the installation has them."""
    sources = {kind.name: _candidates(kind, files, seed) for kind in KINDS}
    pool = {kind.name: _take(sources[kind.name], size * kind.share, keep) for kind in KINDS}
    fillers = [kind for kind in KINDS if kind.filler]
    for done, kind in enumerate(fillers):
        missing = size - sum(map(_text_bytes, pool.values()))
        ceiling = size * MAX_SHARE - _text_bytes(pool[kind.name])
        room = min(missing / (len(fillers) - done), ceiling)
        pool[kind.name] += _take(sources[kind.name], room, keep)
    return {name: documents for name, documents in pool.items() if documents}


def _text_bytes(documents: Iterable[Document]) -> int:
    return sum(len(document.text.encode("utf-8")) for document in documents)


def _write(path: Path, documents: list[Document]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [document._asdict() for document in documents]
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), path)


def _count(documents: Collection[Document]) -> dict[str, int]:
    return {"documents": len(documents), "bytes": _text_bytes(documents)}


def harvest(
    folder: Path, *, megabytes: float = 6.0, shards: int = 4, seed: int = 0
) -> dict[str, Any]:
    """Write the pool, the target and the test set under a folder and return what they hold.

    Args:
        folder: Where to write; shards of an earlier harvest in it are replaced.
        megabytes: The size of the pool's text, in millions of bytes.
        shards: How many Parquet files the pool is dealt out to.
        seed: Picks the pool's documents and their order.

    Returns:
        ``kinds`` (``documents`` and ``bytes`` of each kind), ``pool``, ``target`` and ``test`` (the
        same of the whole files), and ``dropped`` (documents dropped as ``duplicates`` of a text
        or for ``overlaps`` with the target or the test set).

    Raises:
        ValueError: An argument is not positive.
        RuntimeError: The installation has no language reference or fewer than five kinds of text.
    """
    if megabytes <= 0 or shards < 1:
        raise ValueError("megabytes and shards must be positive")
    target, test = language_reference()
    keep = _Filter([*target, *test])
    kinds = _pool(installation(), megabytes * 1e6, seed, keep)
    if len(kinds) < MIN_KINDS:
        raise RuntimeError(f"This Python installation has only these kinds of text: {list(kinds)}")

    pool = sorted(document for documents in kinds.values() for document in documents)
    random.Random(seed).shuffle(pool)
    for old in (folder / "pool").glob("shard-*.parquet"):
        old.unlink()
    for shard in range(shards):
        _write(folder / "pool" / f"shard-{shard:05d}.parquet", pool[shard::shards])
    _write(folder / "target.parquet", target)
    _write(folder / "test.parquet", test)
    return {
        "kinds": {name: _count(documents) for name, documents in kinds.items()},
        "pool": _count(pool),
        "target": _count(target),
        "test": _count(test),
        "dropped": {"duplicates": keep.duplicates, "overlaps": keep.overlaps},
    }


def _table(summary: dict[str, Any]) -> str:
    totals = [(f"= {part}", summary[part]) for part in ("pool", "target", "test")]
    lines = [f"{'kind':<18} {'documents':>9} {'megabytes':>9}"]
    for name, count in [*summary["kinds"].items(), *totals]:
        lines.append(f"{name:<18} {count['documents']:>9,} {count['bytes'] / 1e6:>9.2f}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the script; return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where to write the corpus")
    parser.add_argument("--megabytes", type=float, default=6.0, help="size of the pool's text")
    parser.add_argument("--shards", type=int, default=4, help="number of pool files")
    parser.add_argument("--seed", type=int, default=0, help="picks and shuffles the pool")
    options = parser.parse_args(arguments)
    try:
        summary = harvest(
            options.folder, megabytes=options.megabytes, shards=options.shards, seed=options.seed
        )
    except (OSError, RuntimeError, ValueError) as error:
        print(f"harvest_python: {error}", file=sys.stderr)
        return 1
    print(_table(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
