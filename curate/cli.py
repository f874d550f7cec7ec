"""The command line: each verb parses its flags and calls the Python function of the same name.

Exit codes: 0 done, 2 bad input (found before anything is written, where it can be), 3 too much of
the pool is damaged, 4 the output cannot be written (the same command goes on when it can), 129,
130 or 143 stopped by SIGHUP, SIGINT or SIGTERM, 1 any other failure, whether curate knows it or
not, or an output that `verify` finds changed. Errors are two sentences on standard error: what is
wrong, and what to do. Where that cannot be written, the exit code alone tells.

Names, paths and values may come from anybody's data, so all text is printed with its control and
invisible characters escaped (`say`); CSV and JSON are exact unless they go to a terminal (`Data`).
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import click

_RUN_EXAMPLE = """
\b
Example:
  curate run --pool shards/ --target target.parquet --out out --keep 0.2 --dry-run
  curate run --pool shards/ --target target.parquet --out out --keep 0.2
  curate run pipelines/demo.yaml --set blade.lambda=0.3
"""
_LOG_EXAMPLE = """
\b
Example:
  curate log out
  curate log out --sql "FROM keep_rate_by_source"
  curate log out --sql "FROM dropped" --format parquet > dropped.parquet
  curate log out --why 0:123
"""
_COMPARE_EXAMPLE = """
\b
Example:
  curate compare out out-random
  curate compare out out-random --by source --top 20 --format json
"""
_EVALUATE_EXAMPLE = """
\b
Example:
  curate evaluate out --test test.parquet
  curate evaluate out --test test.parquet --against out-random --format json
"""
_VERIFY_EXAMPLE = """
\b
Example:
  curate verify out
  curate verify out --full --format json
"""
_EXPORT_EXAMPLE = """
\b
Example:
  curate export out --to hf --dest curated --materialize
"""


class Verbs(click.Group):
    """Turns every failure into two sentences and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb."""
        from curate.stop import Stop

        ctx.obj = Stop()
        try:
            with ctx.obj.listening():
                return self._run_verb(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise  # click's own to show; a reader that had enough, as of `curate log ... | head`
        except Exception as error:
            ctx.exit(_tell(error, ctx.invoked_subcommand))
        except KeyboardInterrupt as error:
            with contextlib.suppress(OSError):  # the terminal may be what went away
                click.echo("\nInterrupted. Run the same command again to go on.", err=True)
            ctx.exit(128 + getattr(error, "signal", 2))
        finally:
            _settle(sys.stderr)

    def _run_verb(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Exception:
            ctx.obj.check()  # DuckDB makes an error of its own of a signal within a query
            raise


class Data:
    """Standard output for CSV and JSON: exact, but what a terminal shows moves no cursor."""

    def __init__(self) -> None:
        self._on_terminal = sys.stdout.isatty()

    def write(self, text: str) -> int:
        """Write text as it is, or as a terminal may see it."""
        from curate.log.cells import visible_lines

        return sys.stdout.write(visible_lines(text) if self._on_terminal else text)


def say(text: str, *, err: bool = False) -> None:
    """Print lines for people, with every control and invisible character escaped."""
    from curate.log.cells import visible_lines

    click.echo(visible_lines(text), err=err)


def _tell(error: Exception, verb: str | None) -> int:
    """Say on standard error what is wrong and what to do; returns the exit code."""
    from curate.errors import CurateError
    from curate.log.cells import visible
    from curate.unexpected import foreseen, report

    known = error if isinstance(error, CurateError) else foreseen(error, verb)
    if known is None:
        known = report(error, verb, sys.argv)
    with contextlib.suppress(OSError):  # nobody is left to tell, but the exit code stays
        say(f"Error: {visible(known.problem)}\nTo fix: {visible(known.remedy)}", err=True)
    return known.exit_code


@contextlib.contextmanager
def _printing() -> Iterator[None]:
    """Within, a standard output that cannot be written to ends the verb, but for a closed pipe."""
    from curate.errors import OutputFailed

    if isinstance(sys.stdout, io.TextIOWrapper):  # which need not know every character
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        if sys.stdout is not None:  # closed by the shell
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _settle(sys.stdout)
        reason = error.strerror or str(error)
        raise OutputFailed(
            f"Standard output cannot be written ({reason}).",
            "Make room where it goes and run the same command again.",
        ) from error


def _settle(stream: TextIO | None) -> None:
    """Write what a stream holds, or forget it: Python would try again at its end, and exit 120."""
    if stream is None:  # closed by the shell
        return
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError), Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


_format_option = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="What to print.",
)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="curate", prog_name="curate")
def main() -> None:
    """Curate a language-model training corpus: score, select, reweight, explain."""


@main.command(epilog=_RUN_EXAMPLE)
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--pool", help="Raw corpus: file, folder, glob, URL or hf:NAME.")
@click.option("--target", help="Documents that stand for what a model should learn.")
@click.option("--out", help="Output folder; nothing else is written.")
@click.option("--keep", help="Share of the pool's tokens to keep, in (0, 1].")
@click.option("--method", help="blade, color, rho1, dsir, classifier, perplexity or random.")
@click.option("--granularity", help="document or token.")
@click.option("--model", help="nano, tiny, small, base, or a model folder or Hub id.")
@click.option("--seed", help="Every random choice follows from it.")
@click.option("--device", help="auto, cpu, cuda or cuda:N.")
@click.option("--text-column", help="The column that holds the text, by default in the target too.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting.")
@click.option("--dry-run", is_flag=True, help="Check, say what it would take, write nothing.")
@click.pass_obj
def run(
    stop: Any,
    /,
    config: Path | None,
    assignments: tuple[str, ...],
    *,
    dry_run: bool,
    **flags: str | None,
) -> None:
    """Curate a pool: train the proxy, score every document, write the curated dataset and the log.

    Settings come from the YAML file CONFIG, then the flags, then --set; later ones win. The same
    command goes on where an interrupted run stopped.
    """
    from transformers.utils import logging as transformers_logging

    import curate
    from curate.log.query import summary
    from curate.log.render import render_summary

    quiet: Any = transformers_logging.disable_progress_bar
    quiet()

    given = {_FLAG_KEYS.get(name, name): value for name, value in flags.items()}
    resolved = curate.load_config(config, _parse_flags(given), assignments)
    if dry_run:
        found = curate.estimate(resolved)
        with _printing():
            say(found.text)
        return
    done = curate.run(resolved, stop=stop)
    text = render_summary(summary(done.out))
    with _printing():
        say(f"{text}\n{_where(done.out)}")


_FLAG_KEYS = {"model": "model.name", "device": "compute.device"}
_NUMERIC_FLAGS = ("keep", "seed")


def _parse_flags(flags: dict[str, str | None]) -> dict[str, Any]:
    """Numbers as numbers; what is not one is left for the config to name."""
    parsed: dict[str, Any] = dict(flags)
    for name in _NUMERIC_FLAGS:
        with contextlib.suppress(TypeError, ValueError):
            parsed[name] = int(parsed[name])
            continue
        with contextlib.suppress(TypeError, ValueError):
            parsed[name] = float(parsed[name])
    return parsed


def _where(out: Path) -> str:
    places = {
        "data/": "the curated dataset: load_dataset on this folder, or any Parquet reader",
        "selection_log.duckdb": "why each document was kept or dropped: curate log, or duckdb",
        "report.html": "the run in pictures",
        "README.md": "dataset card",
    }
    lines = [f"  {out / name}  {text}" for name, text in places.items()]
    return "\n".join([f"Written to {out}:", *lines])


@main.command(epilog=_LOG_EXAMPLE)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--sql", help="A query over the log's tables and views, read-only.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "parquet"]),
    default="table",
    show_default=True,
    help="What to print; csv and parquet are for the rows of --sql.",
)
@click.option("--why", metavar="DOCUMENT_ID", help="Explain one document: its id, or SHARD:ROW.")
def log(out: Path, sql: str | None, form: str, why: str | None) -> None:
    """Ask the selection log of a finished run: a summary, any SQL, or why about one document."""
    from curate.errors import InvalidInput
    from curate.log import query, render

    if sql is not None and why is not None:
        raise InvalidInput("--sql and --why are two questions.", "Ask one at a time.")
    if sql is None and form in ("csv", "parquet"):
        raise InvalidInput(
            f"--format {form} is for the rows of a query, but --sql is not given.",
            "Give --sql, or --format json.",
        )
    with _printing():
        if sql is not None:
            _print_rows(query.run_sql(out, sql), form)
            return
        found: Any = query.summary(out) if why is None else query.why(out, why)
        if form == "json":
            _print_json(found)
        else:
            say(render.render_summary(found) if why is None else render.render_why(found))


def _print_json(found: Any) -> None:
    import json

    from curate.log.plain import plain

    Data().write(json.dumps(plain(found), indent=2, ensure_ascii=False) + "\n")


def _print_rows(reader: Any, form: str) -> None:
    from curate.errors import InvalidInput
    from curate.log import render

    if form == "parquet" and sys.stdout.isatty():
        raise InvalidInput(
            "Parquet is binary and would spoil the terminal.",
            "Send it to a file: ... --format parquet > rows.parquet.",
        )
    text: Any = Data()
    if form == "table":
        render.write_table(reader, sys.stdout)
    elif form == "csv":
        render.write_csv(reader, text)
    elif form == "json":
        render.write_json(reader, text)
    else:
        render.write_parquet(reader, sys.stdout.buffer)


@main.command(epilog=_COMPARE_EXAMPLE)
@click.argument("outs", nargs=-1, metavar="OUTS...", type=click.Path(path_type=Path))
@click.option("--by", metavar="COLUMN", help="Metadata column to break kept tokens down by.")
@click.option(
    "--top",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Documents to show that only one of a pair keeps.",
)
@_format_option
def compare(outs: tuple[Path, ...], by: str | None, top: int, form: str) -> None:
    """Compare the selections of finished runs over the same pool.

    Tells how alike they rank and keep, what each favors, and which documents they disagree on most.
    """
    import curate
    from curate.log.compare_text import render_comparison

    comparison = curate.compare(outs, by=by, top=top)
    with _printing():
        if form == "json":
            _print_json(comparison)
        else:
            say(render_comparison(comparison))


@main.command(epilog=_EVALUATE_EXAMPLE)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--test", help="Held-out documents like the target's: file, folder, URL or hf:NAME.")
@click.option(
    "--against",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Another finished run over the same pool; may be given more than once.",
)
@click.option("--seeds", type=int, default=3, show_default=True, help="Trainings of each arm.")
@click.option("--first-seed", type=int, default=0, show_default=True, help="Seed of the first.")
@click.option(
    "--tokens", type=int, help="Tokens to train on; min(4 x kept tokens, 20 x parameters)."
)
@click.option(
    "--model", default="tiny", show_default=True, help="A preset, or a model folder or Hub id."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--multiples",
    default="1,2,4",
    show_default=True,
    help="Budgets of the whole pool, as multiples of the tokens.",
)
@click.option("--text-column", help="The test's column that holds the text.")
@click.option("--pool", help="Where the run's pool lies now, if it moved.")
@click.option("--window", type=int, help="Tokens the model reads at once; its own by default.")
@click.option("--batch-tokens", type=int, help="Tokens in one step; the model's own by default.")
@click.option("--learning-rate", type=float, help="Peak rate; the model's own by default.")
@click.option("--threads", type=int, help="CPU threads; the machine's cores by default.")
@_format_option
def evaluate(out: Path, against: tuple[Path, ...], multiples: str, form: str, **flags: Any) -> None:
    """Tell whether a curated dataset helps: train a small model on it, on random data and on more.

    The same model from the same weights on the same number of tokens, several seeds, measured on
    held-out text. The same command goes on where an interrupted evaluation stopped.
    """
    import json

    from transformers.utils import logging as transformers_logging

    import curate
    from curate.evaluation.text import render_evaluation

    quiet: Any = transformers_logging.disable_progress_bar
    quiet()
    settings = curate.EvaluateSettings(
        out=out, against=against, multiples=_parse_multiples(multiples), **flags
    )
    done = curate.evaluate(settings)
    with _printing():
        if form == "json":
            click.echo(json.dumps(done.report, indent=2, allow_nan=False))
        else:
            say(render_evaluation(done.report))


def _parse_multiples(text: str) -> tuple[float, ...]:
    from curate.errors import InvalidInput

    try:
        return tuple(float(one) for one in text.split(","))
    except ValueError:
        raise InvalidInput(
            f"--multiples must be numbers above 0, but is {text or 'empty'}.",
            "Set --multiples to a list such as 1,2,4.",
        ) from None


@main.command(epilog=_VERIFY_EXAMPLE)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--full", is_flag=True, help="Look at every row, not at a sample of row groups.")
@click.option("--pool", help="Where the run's pool lies now, if it moved.")
@click.option("--no-source", is_flag=True, help="Do not read the pool again.")
@_format_option
@click.pass_context
def verify(
    ctx: click.Context, /, out: Path, *, full: bool, pool: str | None, no_source: bool, form: str
) -> None:
    """Make sure that the output of a finished run is what the run wrote; nothing is changed.

    Hashes every file, reconciles manifest, log and data, and holds rows of the data against the
    pool, value for value: a sample that follows from the run's seed, or all of them.
    Exits with 1 if something does not hold.
    """
    import curate
    from curate.verification.text import render_verification, verification_tree

    done = curate.verify(out, full, pool=pool, source=not no_source)
    with _printing():
        if form == "json":
            _print_json(verification_tree(done))
        else:
            say(render_verification(done))
    if not done.holds:
        ctx.exit(1)


@main.command(epilog=_EXPORT_EXAMPLE)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "to",
    type=click.Choice(["hf", "parquet", "jsonl"]),
    required=True,
    help="hf: a folder for datasets.load_from_disk.",
)
@click.option("--dest", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option("--materialize", is_flag=True, help="Turn weights into repetition.")
@click.option("--seed", type=int, help="Of the repetition; the run's seed by default.")
def export(out: Path, to: str, dest: Path, materialize: bool, seed: int | None) -> None:
    """Export the curated dataset of a finished run for a trainer.

    With --materialize a document is repeated by its weight (rounded up or down at random, the
    expected count being the weight), for trainers that know nothing of weights.
    """
    import curate

    done = curate.export(out, to=to, dest=dest, materialize=materialize, seed=seed)
    with _printing():
        say(f"Wrote {done.rows:,} rows to {dest}.")
