"""The dataset card: README.md of the output folder, generated from the selection log.

Why: whoever meets the folder without its author must see what it is, how to load it, what the
`curate_` columns mean, how much was kept and from where, and what the numbers do not prove. The
YAML at the top lets `datasets.load_dataset` find the parts.

How: one read-only query for each section. Everything that comes from data is written as inert text:
a document's metadata may hold pipes, HTML or line breaks. The card holds neither clock times nor
the folders of the machine, so the same selection gives the same bytes.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import duckdb
import yaml

from curate.config.load import dump_yaml
from curate.files import write_text
from curate.log.explain import rollbacks_in_words
from curate.log.query import DAMAGED_SHARDS, connect_file, grouping_columns, keep_rate_rows
from curate.log.schema import DOCUMENT_REASONS

Row = dict[str, Any]
_VALUES = 20
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B")
_SIZES_LARGE = ("1B<n<10B", "10B<n<100B", "100B<n<1T", "n>1T")
_COLUMNS = """\
| column | type | meaning |
|---|---|---|
| `curate_weight` | float32 | {weight} |
| `curate_score` | float32 | Its score, in standard deviations of its round; where the decisions \
of several rounds count, their average. Higher means keep. |
| `curate_excess_loss` | float32 | Most of what the score is made from, in nats per token: \
positive means that the model that knows the target has the lower loss. Null when the method has \
no reference model. |
| `curate_round` | int32 | The last round that kept it and counts; the last that \
scored it when none did. |
"""
_WEIGHT = "How much the document should count. The mean over kept tokens is 1."
_TOKEN_WEIGHT = "The share of its tokens that are labels."
_LOADING = """\
```python
from datasets import load_dataset

dataset = load_dataset("path/to/this/folder", split="train")
```

Every row has a weight, `curate_weight`. Multiply a document's loss by it, or sample documents in
proportion to it. For a trainer that can do neither, export a copy in which weights are repetition:

```bash
curate export path/to/this/folder --to hf --dest materialized --materialize
```
"""
_TOKEN_LOADING = """\
```python
from datasets import load_dataset
from transformers import AutoTokenizer

dataset = load_dataset("path/to/this/folder", split="train")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder/tokenizer")
```

Tokens were kept or dropped, not documents: `loss_mask[i]` says whether token `input_ids[i]` is a
training label. Set the label of every other token to -100 and leave it in place as context.
`curate_weight` is the share of a document's tokens that are labels; do not weight by it as well.
The token ids are those of the tokenizer in `tokenizer/`, whose files are hashed in `manifest.json`.
"""
_TOKEN_COLUMNS = """\
| `input_ids` | list of int32 | The document's tokens, without special tokens. |
| `loss_mask` | list of bool | Aligned with `input_ids`: whether the token is a training label. |
"""
_CAVEAT = """\
That a document was selected means that the method above ranked it high for the target. It is not
proof that a model trained on this dataset is better than one trained on a random sample of the same
size. Measure that on the pool and target at hand before relying on it. A
selection also inherits and can amplify the biases of its target. The documents are those of the
pool, unchanged: their licences, errors and personal data come with them.
"""


def write_card(path: Path, log: Path) -> None:
    """Write the dataset card of the run whose selection log is `log` to `path`, atomically."""
    with connect_file(log) as connection:
        run = query(connection, "SELECT * FROM run")[0]
        rates = keep_rates(connection, columns=1, values=_VALUES)
        by_token = run["granularity"] == "token"
        sections = [
            _front_matter(run),
            "# Curated dataset\n",
            _summary(run),
            "## Load it\n",
            _TOKEN_LOADING if by_token else _LOADING,
            "## Figures\n",
            _figures(run) + _damaged(connection),
            "## Columns\n",
            "All columns of the pool, unchanged, then:\n",
            _COLUMNS.format(weight=_TOKEN_WEIGHT if by_token else _WEIGHT)
            + (_TOKEN_COLUMNS if by_token else ""),
            "## Why documents were kept or dropped\n",
            _reasons(connection),
            *_keep_rate(rates),
            "## Ask the log\n",
            _asking(rates),
            "## Config\n",
            fenced(public_config(run["config"] or "{}"), "yaml"),
            "## What this does not show\n",
            _CAVEAT,
        ]
    write_text(path, "\n".join(sections))


def query(connection: duckdb.DuckDBPyConnection, sql: str, *values: object) -> list[Row]:
    """The rows of a query as mappings from column name to value."""
    result = connection.execute(sql, list(values))
    names = [column[0] for column in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def keep_rates(
    connection: duckdb.DuckDBPyConnection, columns: int, values: int
) -> dict[str, list[Row]]:
    """Rows of the first `columns` telling keep_rate views (`log.query.grouping_columns`).

    At most `values` rows are given of each: those with the most pool tokens.
    """
    return {
        name: query(connection, f"{keep_rate_rows(name)} LIMIT {values}")
        for name in grouping_columns(connection, columns)
    }


def public_config(config: str) -> str:
    """The run's config (JSON text) as YAML without this machine's folders, passwords or tokens."""
    return dump_yaml(_public(json.loads(config)), sort_keys=False)


def one_line(text: object, limit: int = 80) -> str:
    """Text from data on one line: unprintable characters become spaces, long text is cut."""
    printable = "".join(char if char.isprintable() else " " for char in str(text))
    words = " ".join(printable.split())
    return words if len(words) <= limit else words[: limit - 1] + "…"


def markdown_text(text: object) -> str:
    """Text from data as inert Markdown for one line or table cell."""
    entities = html.escape(one_line(text), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+!|~:.@$^=])", r"\\\1", entities)


def fenced(text: str, language: str) -> str:
    """A fenced code block that no run of backticks in `text` can close."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


def _front_matter(run: Row) -> str:
    names = _SIZES + _SIZES_LARGE
    size = names[min(max(len(str(run["kept_documents"])) - 3, 0), len(names) - 1)]
    head = {
        "configs": [{"config_name": "default", "data_files": "data/*.parquet"}],
        "size_categories": [size],
        "tags": ["curate", "data-selection"],
    }
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n"


def _summary(run: Row) -> str:
    unit = "tokens as labels" if run["granularity"] == "token" else "tokens"
    return (
        f"{run['kept_documents']:,} documents ({run['kept_tokens']:,} {unit}), selected by "
        f"`curate` {markdown_text(run['curate_version'])} from a pool of "
        f"{run['pool_documents']:,} documents for a target of {run['target_documents'] or 0:,} "
        f"documents, with the method {markdown_text(run['method'])}. Each document carries a "
        "weight and the score that it was selected by. `selection_log.duckdb` says for every "
        "document of the pool, kept or not, why; `report.html` shows it.\n"
    )


def _figures(run: Row) -> str:
    share = run["kept_tokens"] / run["pool_tokens"] if run["pool_tokens"] else 0.0
    asked = _number(run["keep_ratio"], ".2%")
    rows = [
        ("pool", f"{run['pool_documents']:,}", f"{run['pool_tokens']:,}"),
        ("target", f"{run['target_documents'] or 0:,}", f"{run['target_tokens'] or 0:,}"),
        ("kept", f"{run['kept_documents']:,}", f"{run['kept_tokens']:,}"),
    ]
    rollbacks = rollbacks_in_words(json.loads(run["rollbacks"] or "[]"), markdown_text)
    return _table(("", "documents", "tokens"), rows) + (
        f"\nKept: {share:.2%} of the pool's tokens; asked for: {asked}. "
        f"Method {markdown_text(run['method'])}, unit {markdown_text(run['granularity'])}, "
        f"seed {run['seed']}.\n" + (f"\n{rollbacks}\n" if rollbacks else "")
    )


def _damaged(connection: duckdb.DuckDBPyConnection) -> str:
    shards = query(connection, DAMAGED_SHARDS)[0]["shards"]
    if not shards:
        return ""
    were = "1 damaged shard of the pool was" if shards == 1 else f"{shards:,} damaged shards were"
    return f"\n{were} left out; the log's view `quarantined` says why.\n"


def _reasons(connection: duckdb.DuckDBPyConnection) -> str:
    rows = query(
        connection,
        "SELECT reason, count(*) AS documents, sum(tokens)::BIGINT AS tokens FROM document "
        "GROUP BY reason ORDER BY documents DESC, reason",
    )
    cells = [
        (
            markdown_text(row["reason"]),
            DOCUMENT_REASONS.get(row["reason"], ""),
            f"{row['documents']:,}",
            f"{row['tokens'] or 0:,}",
        )
        for row in rows
    ]
    return _table(("reason", "meaning", "documents", "tokens"), cells)


def _keep_rate(rates: dict[str, list[Row]]) -> Iterator[str]:
    for column, rows in rates.items():
        name = markdown_text(column)
        cells = [
            (
                markdown_text("(none)" if row["value"] is None else row["value"]),
                f"{row['documents']:,}",
                f"{row['documents_kept']:,}",
                _number(row["token_keep_rate"], ".1%"),
                _number(row["enrichment"], ".2f"),
            )
            for row in rows
        ]
        yield f"## Kept by {name}\n"
        yield (
            f"The {_VALUES} values with the most tokens, at most. Enrichment is the value's share "
            "of the kept tokens over its share of the pool's: above 1, the selection prefers it.\n"
        )
        yield _table((name, "documents", "kept", "of its tokens", "enrichment"), cells)


def _asking(rates: dict[str, list[Row]]) -> str:
    asked = "FROM document LIMIT 10"
    for column in rates:
        if re.fullmatch(r"\w+", column, re.ASCII):
            asked = f"FROM keep_rate_by_{column} ORDER BY enrichment DESC"
    code = (
        "import duckdb\n\n"
        'log = duckdb.connect("selection_log.duckdb", read_only=True)\n'
        f'log.sql("{asked}").show()\n'
        'log.sql("DESCRIBE decision").show()  # one row per document and round that scored it\n'
    )
    return fenced(code, "python")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _public(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_public(item) for item in value]
    return _public_location(value) if isinstance(value, str) else value


def _public_location(text: str) -> str:
    """A path by its last name, an address without user, query and fragment."""
    if text.startswith("file:") or PurePosixPath(text).is_absolute() or text.startswith("~"):
        return PurePosixPath(text).name
    if PureWindowsPath(text).is_absolute():
        return PureWindowsPath(text).name
    if "://" in text:
        scheme, _, rest = text.partition("://")
        place, slash, path = re.split("[?#]", rest, maxsplit=1)[0].partition("/")
        return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}"
    return text
