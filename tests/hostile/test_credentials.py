"""Credentials in addresses and in the environment are in nothing that a run writes or prints."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pytest
from hostile_helpers import LOGIN, PASSWORD, SECRETS, SIGNATURE, Attacked
from run_helpers import curate

from curate.evaluation import EvaluateSettings, evaluate
from curate.read.locate import display_uri, short_reason

SHOWN = {"pool": "vault://host/pool.parquet", "target": "vault://host/target.parquet"}


def holds_none(text: str, where: object) -> None:
    assert [secret for secret in SECRETS if secret in text] == [], where


def log_text(log: Path) -> str:
    """Every value of every table, and every comment and statement."""
    with duckdb.connect(str(log), read_only=True) as connection:
        tables = [
            name
            for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()
        ]
        tables += ["duckdb_tables()", "duckdb_columns()", "duckdb_views()", "duckdb_functions()"]
        return "".join(str(connection.execute(f"FROM {name}").fetchall()) for name in tables)


def test_no_output_holds_a_secret(attacked: Attacked) -> None:
    files = [path for path in attacked.out.rglob("*") if path.is_file()]
    assert {"config.yaml", "manifest.json", "README.md", "report.html"} <= {f.name for f in files}
    for path in files:
        holds_none(path.read_bytes().decode("latin-1"), path)
    holds_none(log_text(attacked.log), attacked.log)
    holds_none(attacked.printed, "printed")


def test_settings_hold_what_is_shown(attacked: Attacked) -> None:
    manifest = json.loads((attacked.out / "manifest.json").read_text())
    for role, shown in SHOWN.items():
        assert manifest["config"][role] == manifest["stages"]["config"][role] == shown
        assert f"\n{role}: {shown}\n" in (attacked.out / "config.yaml").read_text()
    [(config,)] = attacked.sql("SELECT config FROM run")
    assert {role: json.loads(config)[role] for role in SHOWN} == SHOWN


def test_the_same_command_goes_on_with_or_without_another_login(attacked: Attacked) -> None:
    assert curate(*attacked.arguments).exit_code == 0
    other = [
        one.replace("host/pool.parquet", f"host/pool.parquet?sig={SIGNATURE}").replace(LOGIN, "")
        for one in attacked.arguments
    ]
    assert other != attacked.arguments
    assert curate(*other).exit_code == 0


@pytest.mark.parametrize("flag", ["--pool", "--target"])
def test_what_cannot_be_read_is_named_without_its_secret(
    attacked: Attacked, tmp_path: Path, flag: str
) -> None:
    for address in (
        f"vault://other:{SIGNATURE}@host/pool.parquet",
        f"vault://{LOGIN}host/absent.parquet",
        f"vault://host/pool.parquet?sig=not-{SIGNATURE}",
        f"s4://{LOGIN}host/pool.parquet",
    ):
        where = attacked.arguments.index(flag) + 1
        arguments = [*attacked.arguments[:where], address, *attacked.arguments[where + 1 :]]
        result = curate(*arguments, "--out", str(tmp_path / "out"))
        assert result.exit_code == 2, result.exception
        holds_none(result.output, address)


def test_settings_that_are_wrong_are_named_without_a_secret(attacked: Attacked) -> None:
    address = f"vault://{LOGIN}host/pool.parquet"
    for more in (
        ["--set", address],
        ["--set", f"pool={address}{{"],
        ["--keep", address],
        ["--set", f"blade.passes={address}"],
        ["--model", address],
    ):
        result = curate(*attacked.arguments, *more)
        assert result.exit_code == 2, (more, result.exception)
        holds_none(result.output, more)


def test_an_evaluation_holds_none(attacked: Attacked) -> None:
    """The pool has columns named as those that sizes are read from, too."""
    address = attacked.arguments[attacked.arguments.index("--target") + 1]
    small = {"seeds": 1, "tokens": 300, "window": 16, "threads": 1, "multiples": (1.0,)}
    done = evaluate(EvaluateSettings(out=attacked.out, test=address, **small))
    assert done.report["settings"]["test"] == SHOWN["target"]
    holds_none((attacked.out / "evaluation.json").read_text(), "evaluation.json")
    holds_none(log_text(attacked.log), attacked.log)


@pytest.mark.parametrize(
    "address",
    [
        f"https://{LOGIN}host/x.parquet?sig={SIGNATURE}#{SIGNATURE}",
        f"HTTPS://host/x.parquet?{SIGNATURE}",
        f"https://user:p?{SIGNATURE}@host/x.parquet",
        f"simplecache::s3://KEY:{PASSWORD}@bucket/x?token={SIGNATURE}",
        f"zip://*.parquet::https://user:{SIGNATURE}@host/x.zip?{SIGNATURE}",
        f"filecache::https://user:p?{SIGNATURE}@host/x.parquet",
        f"az://container/x.parquet?sv=1&sig={SIGNATURE}",
    ],
)
def test_an_address_is_shown_without_its_secret(address: str) -> None:
    holds_none(display_uri(address), address)
    holds_none(short_reason(OSError(f"no access to '{address}', try again")), address)


def test_a_quote_in_a_password_hides_nothing_of_the_address() -> None:
    reason = short_reason(OSError(f"no access to 'https://user:it's{SIGNATURE}@host/x' now"))
    assert reason == "no access to 'https://host/x' now"
