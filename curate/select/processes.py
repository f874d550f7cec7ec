"""Processes that count words while the models are at work.

Counting holds Python's lock nearly all of the time, so a thread would take turns with the models;
a process has a lock of its own. A COUNTING PROCESS is told the tokenizer and what is to be made of
n-grams, gets tokenized documents over a pipe, and answers with what it made of theirs. Nothing that
a run depends on is in it, and it ends when its pipe does, so that none outlives a run that was
killed.

It is started as a program of its own, not by `multiprocessing`, which would run the user's script
again in each process, and so ask every script to be written for that.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, BinaryIO

import tokenizers

from curate.read.decode import decode_tokens
from curate.read.documents import Documents
from curate.select.ngrams import NgramHasher, Ngrams

_BESIDE_A_DEVICE = 8
"""Processes that keep up with a GPU."""
_MOST = 16
"""Each takes some 150 MB."""
_PROGRAM = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from curate.select.processes import serve; serve(sys.stdin.buffer, sys.stdout.buffer)"
)


def usual_processes(cores: int, models: str | None) -> int:
    """How many counting processes serve a run.

    Args:
        cores: of the CPU, that the run may use.
        models: the kind of device that models run on; None for a method without any.
    """
    if models is None:
        return min(cores, _MOST) if cores > 1 else 0
    return 0 if models == "cpu" else min(cores - 1, _BESIDE_A_DEVICE)


class CountingProcesses:
    """Counting processes for the documents of one tokenizer; they start when first asked for.

    A context, at whose end they end, whatever they are at.
    """

    def __init__(self, tokenizer: str, number: int) -> None:
        """Have up to `number` processes; `tokenizer` is its JSON text."""
        self._tokenizer, self._number = tokenizer, number
        self._started: list[CountingProcess] | None = None

    def __enter__(self) -> CountingProcesses:
        """Start nothing yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End them all."""
        for process in self._started or []:
            process.end()
        self._started = []

    def running(self) -> Sequence[CountingProcess]:
        """Those that can be asked: one that cannot start, or has ended, is done without."""
        if self._started is None:
            self._started = []
            with contextlib.suppress(OSError):
                for _ in range(self._number):
                    self._started.append(CountingProcess())
            for process in self._started:  # all of them are under way by now
                process.tell(sys.path)
                process.tell(self._tokenizer)
        return [process for process in self._started if process.alive]


class CountingProcess:
    """One of them, which is asked one thing at a time."""

    def __init__(self) -> None:
        """Start it.

        Raises:
            OSError: the system refused.
        """
        self.alive, self._asked = True, False
        self._work: object = None
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # an interrupt from the keyboard is for the run alone
        )

    def tell(self, what: object) -> None:
        """Send it something, unless it has ended."""
        pipe = self._process.stdin
        if not self.alive or pipe is None:
            return
        try:
            pickle.dump(what, pipe, pickle.HIGHEST_PROTOCOL)
            pipe.flush()
        except OSError:
            self.end()

    def ask(self, documents: Documents, num_buckets: int, work: Callable[[Ngrams], object]) -> None:
        """Have documents counted and worked on; what was asked before is forgotten."""
        self.answer()  # it may be waiting to be rid of one, and would not listen
        new = None if work is self._work else work
        self.tell((documents.offsets, documents.input_ids, num_buckets, new))
        self._work, self._asked = work, self.alive

    def answer(self) -> Any:
        """What became of what was last asked, once it is there; None if it never will be."""
        pipe, asked, self._asked = self._process.stdout, self._asked, False
        if not asked or pipe is None:
            return None
        try:
            return pickle.load(pipe)
        except (EOFError, OSError, pickle.UnpicklingError):
            self.end()
            return None

    def end(self) -> None:
        """Kill it."""
        self.alive = self._asked = False
        self._process.kill()
        with contextlib.suppress(OSError, ValueError):  # what it has not read is lost
            self._process.communicate()


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Be a counting process, until `source` ends."""
    backend = tokenizers.Tokenizer.from_str(pickle.load(source))
    hashers: dict[int, NgramHasher] = {}
    work: Callable[[Ngrams], object] | None = None
    while True:
        try:
            offsets, input_ids, num_buckets, new = pickle.load(source)
        except EOFError:
            return
        if num_buckets not in hashers:
            hashers[num_buckets] = NgramHasher(num_buckets)
        ngrams = hashers[num_buckets](decode_tokens(backend, offsets, input_ids))
        work = new or work
        pickle.dump(work(ngrams) if work else None, sink, pickle.HIGHEST_PROTOCOL)
        sink.flush()
