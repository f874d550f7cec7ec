"""Values of Arrow, DuckDB and the config as plain JSON values.

JSON knows no decimals, times, bytes or infinities, and they all turn up: in configs that go into
the log and in query results that come out of it. Both go through here, so they read the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal


def plain(value: object) -> object:
    """The value with only JSON types in it.

    NaN and infinities become null; dates and times ISO 8601 text; bytes hexadecimal text; decimals
    without places integers; other decimals and everything else their usual text.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal) and value.is_finite() and value.as_tuple().exponent == 0:
        return int(value)  # a sum of integers, which DuckDB gives 128 bits
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(inner) for inner in value]
    return _text(value)


def _text(value: object) -> str:
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    return str(value)


def json_text(value: object) -> str:
    """The value as JSON on one line; the order of mappings is kept."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False)
