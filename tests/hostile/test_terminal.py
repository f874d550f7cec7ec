"""Nothing from data moves a terminal's cursor, sets its title or turns its text round."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import duckdb
import pytest
from hostile_helpers import Attacked
from run_helpers import PROGRAM, curate, environment

from curate.log.cells import visible_lines

ESCAPE = "\x1b[31mred\x9b\u202e"


def hidden(text: str) -> list[str]:
    """Characters that a terminal does not show as they are, line ends aside."""
    kinds = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    return [c for c in text if unicodedata.category(c) in kinds and c != "\n"]


def test_a_run_prints_nothing_hidden(attacked: Attacked) -> None:
    assert hidden(attacked.printed) == []
    assert "\\x1b[2J\\x1b]0;owned\\x07\\r\\x08\\x9b31m" in attacked.printed


@pytest.mark.parametrize(
    "more", [[], ["--why", "0:1"], ["--sql", "FROM document"], ["--sql", f"FROM {ESCAPE}"]]
)
def test_the_log_prints_nothing_hidden(attacked: Attacked, more: list[str]) -> None:
    result = curate("log", str(attacked.out), *more)
    assert result.exit_code in (0, 2), result.exception
    assert hidden(result.output) == []


@pytest.mark.parametrize("by", [ESCAPE, f"absent {ESCAPE}"])
def test_comparisons_print_nothing_hidden(attacked: Attacked, by: str) -> None:
    result = curate("compare", str(attacked.out), str(attacked.out), "--by", by)
    assert result.exit_code in (0, 2), result.exception
    assert hidden(result.output) == []
    assert "\\x1b[31mred\\x9b\\u202e" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["log", "{path}"],
        ["compare", "{path}", "{path}"],
        ["export", "{path}", "--to", "hf", "--dest", "d"],
        ["evaluate", "{path}", "--test", "t"],
        ["run", "--pool", "{path}", "--target", "t", "--out", "o"],
        ["run", "{path}"],
        ["run", "--pool", "p", "--target", "t", "--out", "o", "--method", ESCAPE],
    ],
)
def test_errors_name_files_with_nothing_hidden(tmp_path: Path, arguments: list[str]) -> None:
    result = curate(*(one.format(path=tmp_path / f"{ESCAPE}\r\nline") for one in arguments))
    assert result.exit_code == 2, result.exception
    assert hidden(result.stderr) == []
    assert result.stderr.count("\n") == 2


def test_a_log_of_somebody_else_says_nothing_hidden(tmp_path: Path) -> None:
    """Its method, reasons and explanations are text of theirs."""
    with duckdb.connect(str(tmp_path / "selection_log.duckdb")) as log:
        log.execute(f"CREATE TABLE run AS SELECT '{ESCAPE}' AS run_id, '{ESCAPE}' AS method")
        log.execute("CREATE TABLE round AS SELECT 1 AS round WHERE false")
        log.execute("CREATE TABLE shard AS SELECT 'ok' AS status")
        log.execute(
            f"CREATE TABLE document AS SELECT '{ESCAPE}' AS reason, true AS kept, 1 AS tokens"
        )
        log.execute(
            "CREATE MACRO why(id) AS TABLE SELECT id AS document_id, 0 AS shard_id, 0 AS row, "
            f"1 AS tokens, 1 AS bytes, '{ESCAPE}' AS explanation"
        )
        log.execute("ALTER TABLE run ADD COLUMN stage_seconds VARCHAR")
    for more in ([], ["--why", "1"]):
        result = curate("log", str(tmp_path), *more)
        assert result.exit_code == 0, (result.output, result.exception)
        assert hidden(result.output) == []
        assert "\\x1b[31mred" in result.output


def test_lines_stay_lines() -> None:
    assert visible_lines("a\r\nb\x1b\n") == "a\\r\nb\\x1b\n"


@pytest.mark.parametrize("form", ["csv", "json"])
def test_data_is_exact_in_a_pipe_and_harmless_on_a_terminal(attacked: Attacked, form: str) -> None:
    sql = 'SELECT "<img src=x onerror=alert(1)>" AS a FROM document ORDER BY document_id'
    arguments = ["log", str(attacked.out), "--sql", sql, "--format", form]
    assert "\u202egnp.exe" in curate(*arguments).output
    assert hidden(on_terminal(arguments)) == []


@pytest.mark.parametrize("form", ["table", "json"])
def test_a_verification_is_harmless_on_a_terminal(
    attacked: Attacked, tmp_path: Path, form: str
) -> None:
    out = Path(shutil.copytree(attacked.out, tmp_path / "out"))
    (out / "data" / f"{ESCAPE}.txt").write_text("planted")
    arguments = ["verify", str(out), "--no-source", "--format", form]
    if form == "json":
        assert "\x9b\u202e.txt" in curate(*arguments).output
    printed = on_terminal(arguments, code=1)
    assert hidden(printed) == []
    assert "\\u202e.txt" in printed


def on_terminal(arguments: list[str], code: int = 0) -> str:
    """What a command prints on a terminal, which turns each line end into a return and one."""
    ours, theirs = pty.openpty()
    program = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(program, env=environment(), stdout=theirs, check=False, timeout=60)
    assert done.returncode == code
    os.close(theirs)
    pieces = []
    with contextlib.suppress(OSError):  # the end
        while piece := os.read(ours, 1 << 16):
            pieces.append(piece)
    os.close(ours)
    return b"".join(pieces).decode().replace("\r\n", "\n")
