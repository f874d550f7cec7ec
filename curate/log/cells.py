"""Values of a query result as text: for a terminal's columns, and for CSV and JSON.

Text from the pool is not trusted: a document's metadata may hold line breaks or the escape codes
that move a terminal's cursor, so control characters are shown escaped. Widths count what a terminal
shows: wide characters take two columns, combining marks none.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
import pyarrow as pa

from curate.errors import InvalidInput
from curate.log.plain import json_text, plain

MAXIMUM_WIDTH = 80
"""Columns of a terminal that one cell may take."""

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def python_values(column: pa.Array) -> list[object]:
    """The values of an Arrow column, float32 with no more digits than it has."""
    if pa.types.is_float32(column.type):
        return [None if v is None else float(str(np.float32(v))) for v in column.to_pylist()]
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    try:
        return list(column.to_pylist())
    except OverflowError:
        raise InvalidInput(
            "The result holds dates beyond the years 1 to 9999.",
            "Cast them to text in the query, with ::VARCHAR.",
        ) from None


def is_numeric(kind: pa.DataType) -> bool:
    """Whether columns of this type are aligned to the right."""
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    return any(test(kind) for test in tests)


def cell(value: object) -> str:
    """One value as a single line of text, cut to `MAXIMUM_WIDTH`."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, (int, Decimal)):
        return str(value)
    ready = plain(value)
    return shorten(visible(ready if isinstance(ready, str) else json_text(ready)))


def number(value: float) -> str:
    """A float with six significant digits, and without an exponent where that reads better."""
    if not math.isfinite(value):
        return str(value)
    if 1e6 <= abs(value) < 1e15:
        return f"{value:.1f}"
    return f"{value:.6g}"


def visible(text: str) -> str:
    """The text with every control and invisible character escaped."""
    if text.isprintable():
        return text
    return "".join(_escaped(c) if unicodedata.category(c) in _HIDDEN else c for c in text)


def visible_lines(text: str) -> str:
    """The same of text of several lines, as a terminal shows it."""
    return "\n".join(visible(one) for one in text.split("\n"))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def width(text: str) -> int:
    """How many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    return sum(_character_width(character) for character in text)


def _character_width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def shorten(text: str, limit: int = MAXIMUM_WIDTH) -> str:
    """The text, cut with … where it is wider than `limit`."""
    if width(text) <= limit:
        return text
    used = 0
    for index, character in enumerate(text):
        used += _character_width(character)
        if used > limit - 1:
            return text[:index] + "…"
    return text


def pad(text: str, size: int, *, right: bool = False) -> str:
    """The text filled with spaces to `size` columns; `right` aligns it to the right."""
    spaces = " " * max(0, size - width(text))
    return spaces + text if right else text + spaces


def widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """The width that each column of these rows needs."""
    return [max(width(text) for text in column) for column in zip(*rows, strict=True)]


def line(row: Sequence[str], sizes: Sequence[int], right: Sequence[bool]) -> str:
    """One row of cells, padded to the columns' widths."""
    cells = (
        pad(text, size, right=side) for text, size, side in zip(row, sizes, right, strict=True)
    )
    return "  ".join(cells).rstrip() + "\n"


def text_table(
    names: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[bool]
) -> str:
    """A few rows as an aligned text table, without a footer."""
    cells = [[cell(value) for value in row] for row in rows]
    sizes = widths([names, *cells])
    return "".join(line(row, sizes, right) for row in [names, *cells])
