"""What a command is started from may go away: its terminal, its standard error, a full disk."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from run_helpers import (
    PROGRAM,
    Run,
    assert_same_outcome,
    curate,
    environment,
    run_arguments,
    run_tiny,
    write_plain_pool,
)

SETTINGS = {"blade__warmup_tokens": 5_000}


def held_in_training(mark: Path, until: str) -> str:
    """The command line, which in its fourth step of training waits until something holds."""
    return (
        "import os, signal, sys, time\n"
        "from curate.select.methods.proxy import Proxy\n"
        "train, calls = Proxy.train, []\n"
        "def closed():\n"
        "    try:\n"
        "        os.write(2, b'.')\n"
        "    except OSError:\n"
        "        return True\n"
        "def held(self, documents):\n"
        "    calls.append(documents)\n"
        "    if len(calls) == 4:\n"
        f"        open({str(mark)!r}, 'w').close()\n"
        f"        while not ({until}):\n"
        "            time.sleep(0.01)\n"
        "    train(self, documents)\n"
        "Proxy.train = held\n" + PROGRAM
    )


def start(arguments: list[str], terminal: int, *, own: bool) -> subprocess.Popen[str]:
    """Python code in a session of its own, standard error a terminal: its own if `own`."""

    def enter() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # pytest may have been run by nohup
        if own:
            fcntl.ioctl(2, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [sys.executable, "-c", *arguments], env=environment(), start_new_session=True,
        stdout=subprocess.PIPE, stderr=terminal, text=True, preexec_fn=enter,  # noqa: PLW1509
    )  # fmt: skip
    os.close(terminal)
    return process


def drain_until(terminal: int, mark: Path) -> None:
    """Read what a terminal shows until the mark is there; what it shows must be read."""
    os.set_blocking(terminal, False)
    while not mark.exists():
        try:
            os.read(terminal, 1 << 16)
        except BlockingIOError:
            time.sleep(0.01)
        except OSError as error:
            raise AssertionError("the command ended before its mark") from error


def test_a_terminal_that_is_closed_stops_a_run_at_a_checkpoint(tmp_path: Path) -> None:
    """The kernel hangs up, and the shell once more, which is not a second wish to stop."""
    inputs, out, mark = write_plain_pool(tmp_path), tmp_path / "out", tmp_path / "mark"
    twice = "signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and not os.kill(os.getpid(), 1)"
    program = held_in_training(mark, twice)
    terminal, shown = os.openpty()
    process = start([program, *run_arguments(inputs, out, **SETTINGS)], shown, own=True)
    drain_until(terminal, mark)
    os.close(terminal)
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGHUP
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["partial"]["stage"] == "warm-up"
    assert manifest["partial"]["result"]["losses"]["proxy"][1] == 4
    assert curate(*run_arguments(inputs, out, **SETTINGS)).exit_code == 0
    assert_same_outcome(Run(inputs, out), run_tiny(inputs, tmp_path / "whole", **SETTINGS))


def test_a_run_outlives_the_terminal_that_showed_it(tmp_path: Path) -> None:
    """As one that was started with nohup or disowned; its bar and notes have nowhere to go."""
    inputs, out, mark = write_plain_pool(tmp_path), tmp_path / "out", tmp_path / "mark"
    terminal, shown = os.openpty()
    program = held_in_training(mark, "closed()")
    process = start([program, *run_arguments(inputs, out, **SETTINGS)], shown, own=False)
    drain_until(terminal, mark)
    os.close(terminal)
    stdout, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert f"Written to {out}:" in stdout
    assert_same_outcome(Run(inputs, out), run_tiny(inputs, tmp_path / "whole", **SETTINGS))


WAYS = ["full", "closed", "not read"]


@pytest.mark.parametrize("way", WAYS)
def test_a_standard_error_that_takes_nothing(tmp_path: Path, way: str) -> None:
    """A run says on it what was quarantined, and how it is set up."""
    inputs, out = write_plain_pool(tmp_path), tmp_path / "out"
    (inputs / "pool" / "broken.parquet").write_bytes(b"PAR1")
    settings = {"method": "random", "max_bad_fraction": 0.5}
    done = without_standard_error(way, *run_arguments(inputs, out, **settings))
    assert done.returncode == 0
    assert f"Written to {out}:" in done.stdout
    assert_same_outcome(Run(inputs, out), run_tiny(inputs, tmp_path / "whole", **settings))


@pytest.mark.parametrize("way", WAYS)
def test_an_error_that_nobody_reads_keeps_its_exit_code(tmp_path: Path, way: str) -> None:
    done = without_standard_error(way, "log", str(tmp_path / "nothing"))
    assert (done.returncode, done.stdout) == (2, "")


def without_standard_error(way: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, its standard error full, closed, or a pipe that nobody reads."""
    full = Path("/dev/full")
    if way == "full" and not full.is_char_device():
        pytest.skip("no device that is full")
    reader, writer = os.pipe()
    os.close(reader)
    with ExitStack() as opened:
        opened.callback(os.close, writer)
        error = opened.enter_context(full.open("wb")) if way == "full" else writer
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, *arguments], env=environment(),
            stdout=subprocess.PIPE, stderr=error, text=True, timeout=120, check=False,
            preexec_fn=(lambda: os.close(2)) if way == "closed" else None,
        )  # fmt: skip
