"""Counting in other processes: the same n-grams, whatever becomes of the processes."""

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_helpers import data_digests, log_rows, run_tiny, snapshot, write_plain_pool

from curate.read.documents import Documents, concatenate, from_tokens
from curate.read.tokenizer import TextTokenizer, train_tokenizer
from curate.select import processes as module
from curate.select.counting import NgramCounter, _whole, split
from curate.select.ngrams import NgramHasher, Ngrams, concatenate_ngrams
from curate.select.processes import CountingProcess, CountingProcesses, usual_processes

BUCKETS = 1 << 16
TEXTS = ["river stone, cloud", "", "Grüße! 日本 🙂", "amber " * 40, "x"]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_tokenizer(iter(["river stone cloud amber"] * 10), 300)


@pytest.fixture(scope="module")
def shared(tokenizer: TextTokenizer) -> Iterator[CountingProcesses]:
    with CountingProcesses(tokenizer.to_json(), 3) as processes:
        yield processes


@pytest.fixture
def processes(tokenizer: TextTokenizer) -> Iterator[CountingProcesses]:
    with CountingProcesses(tokenizer.to_json(), 3) as processes:
        yield processes


def tokenized(tokenizer: TextTokenizer, texts: list[str]) -> Documents:
    sizes = [len(text.encode()) for text in texts]
    return from_tokens(range(len(texts)), sizes, tokenizer.encode(texts))


def no_decoding(documents: Documents) -> list[str]:
    raise AssertionError("nothing is to be counted in this process")


def assert_counted(found: Ngrams, texts: list[str], buckets: int = BUCKETS) -> None:
    expected = NgramHasher(buckets)(texts)
    np.testing.assert_array_equal(found.buckets, expected.buckets)
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    assert found.buckets.dtype == expected.buckets.dtype


@settings(deadline=None)  # the first waits for processes to start
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=9))
def test_n_grams_are_those_that_are_counted_here(tokenizer, shared, texts):
    documents = tokenized(tokenizer, texts)
    assert_counted(NgramCounter(no_decoding, BUCKETS, shared)(documents), texts)
    assert_counted(NgramCounter(tokenizer.decode, BUCKETS)(documents), texts)


def test_buckets_are_the_counter_s_own(tokenizer, shared):
    documents = tokenized(tokenizer, TEXTS)
    for buckets in (7, 1000, 7):
        assert_counted(NgramCounter(no_decoding, buckets, shared)(documents), TEXTS, buckets)


@pytest.mark.parametrize("reduce", [Ngrams.means, Ngrams.sums])
def test_what_is_made_of_them_is_the_same_to_the_last_digit(reduce, tokenizer, shared):
    documents = tokenized(tokenizer, TEXTS)
    counter = NgramCounter(no_decoding, BUCKETS, shared)
    for seed in (0, 1, 1):
        values = np.random.default_rng(seed).normal(size=BUCKETS)
        work = functools.partial(reduce, values=values)
        for _ in range(2):
            found = np.concatenate(counter.begin(documents, work)())
            expected = reduce(NgramHasher(BUCKETS)(TEXTS), values)
            np.testing.assert_array_equal(found, expected)


def test_work_is_sent_once(tokenizer, shared, monkeypatch):
    """A table of a value per bucket is larger than most blocks."""
    sent = []
    tell = CountingProcess.tell
    monkeypatch.setattr(
        CountingProcess, "tell", lambda process, what: (sent.append(what[-1]), tell(process, what))
    )
    counter = NgramCounter(no_decoding, BUCKETS, shared)
    works = [functools.partial(Ngrams.means, values=np.zeros(BUCKETS)) for _ in range(2)]
    for work in (works[0], works[0], works[1], works[1], works[0]):
        counter.begin(tokenized(tokenizer, TEXTS), work)()
    one, other = ([work] * 3 for work in works)
    assert sent == [*one, *[None] * 3, *other, *[None] * 3, *one]


def test_work_that_fails_fails_here(tokenizer, processes):
    counter = NgramCounter(tokenizer.decode, BUCKETS, processes)
    waiting = counter.begin(
        tokenized(tokenizer, TEXTS), functools.partial(Ngrams.means, values=np.zeros(1))
    )
    with pytest.raises(IndexError):
        waiting()


@given(lengths=st.lists(st.integers(0, 50), max_size=20), parts=st.integers(1, 9))
def test_parts_are_consecutive_and_about_equal(lengths, parts):
    documents = from_tokens(
        range(len(lengths)), lengths, [np.full(length, 7, dtype=np.uint16) for length in lengths]
    )
    found = split(documents, parts)
    assert len(found) == parts
    joined = concatenate(found)
    for name in ("ids", "bytes", "offsets", "input_ids"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(documents, name))
    longest = max(lengths, default=0)
    assert all(part.num_tokens <= documents.num_tokens / parts + longest for part in found)


def test_what_is_not_waited_for_is_forgotten(tokenizer, processes):
    """Its answers are larger than a pipe holds, so somebody has to take them."""
    large = ["river stone " * 20_000] * 3
    counter = NgramCounter(no_decoding, BUCKETS, processes)
    counter.begin(tokenized(tokenizer, large), _whole)
    another = NgramCounter(no_decoding, BUCKETS, processes)  # as after a stage that starts over
    another.begin(tokenized(tokenizer, large), _whole)
    assert_counted(another(tokenized(tokenizer, TEXTS)), TEXTS)


@pytest.mark.parametrize("killed", [1, 3])
def test_killed_while_it_counts(killed, tokenizer, processes):
    counter = NgramCounter(tokenizer.decode, BUCKETS, processes)
    waiting = counter.begin(tokenized(tokenizer, TEXTS), _whole)
    for process in processes.running()[:killed]:
        os.kill(process._process.pid, signal.SIGKILL)
        process._process.wait()
    assert_counted(concatenate_ngrams(waiting()), TEXTS)
    assert_counted(counter(tokenized(tokenizer, TEXTS)), TEXTS)
    assert len(processes.running()) == 3 - killed


def test_killed_before_it_is_asked(tokenizer, processes):
    counter = NgramCounter(tokenizer.decode, BUCKETS, processes)
    os.kill(processes.running()[1]._process.pid, signal.SIGKILL)
    processes.running()[1]._process.wait()
    assert_counted(counter(tokenized(tokenizer, TEXTS)), TEXTS)
    assert len(processes.running()) == 2


@pytest.mark.parametrize("program", ["no/such/python", sys.executable])
def test_one_that_cannot_start_is_done_without(program, tokenizer, processes, monkeypatch):
    monkeypatch.setattr(module.sys, "executable", program)
    monkeypatch.setattr(module, "_PROGRAM", "raise SystemExit(1)")
    counter = NgramCounter(tokenizer.decode, BUCKETS, processes)
    for _ in range(2):
        assert_counted(counter(tokenized(tokenizer, TEXTS)), TEXTS)
    assert not processes.running()


def test_none_outlives_its_context(tokenizer):
    with CountingProcesses(tokenizer.to_json(), 2) as processes:
        running = processes.running()
        NgramCounter(no_decoding, BUCKETS, processes).begin(tokenized(tokenizer, TEXTS), _whole)
    assert all(process._process.poll() == -signal.SIGKILL for process in running)
    assert not processes.running()


def test_none_starts_unless_it_is_needed(tokenizer, monkeypatch):
    monkeypatch.setattr(module, "CountingProcess", None)
    with CountingProcesses(tokenizer.to_json(), 2):
        pass


_PARENT = """
import sys, time
from curate.read.tokenizer import train_tokenizer
from curate.select.processes import CountingProcesses

with CountingProcesses(train_tokenizer(iter(["a b"]), 300).to_json(), 2) as processes:
    print(*(process._process.pid for process in processes.running()), flush=True)
    time.sleep(600)
"""


def test_none_outlives_a_run_that_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    numbers = [int(number) for number in parent.stdout.readline().split()]
    assert len(numbers) == 2
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 60
    while any(map(is_running, numbers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(number: int) -> bool:
    """Whether a process is there and is more than a dead one's entry."""
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_script_needs_no_main_guard_and_shadows_nothing(tmp_path):
    """The folder of a script may hold files that are called like modules."""
    for name in ("pickle.py", "tokenizers.py"):
        (tmp_path / name).write_text("raise RuntimeError('imported')\n")
    (tmp_path / "curate").mkdir()
    done = subprocess.run(
        [sys.executable, "-P", "-c", _SCRIPT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "2 3\n"


_SCRIPT = """
import numpy as np
from curate.read.documents import from_tokens
from curate.read.tokenizer import train_tokenizer
from curate.select.counting import NgramCounter
from curate.select.processes import CountingProcesses

tokenizer = train_tokenizer(iter(["a b"]), 300)
documents = from_tokens([0], [3], tokenizer.encode(["a b"]))
with CountingProcesses(tokenizer.to_json(), 2) as processes:
    ngrams = NgramCounter(None, 100, processes)(documents)
    print(len(processes.running()), len(ngrams.buckets))
"""


@pytest.mark.parametrize(
    ("cores", "models", "expected"),
    [
        (1, None, 0),
        (2, None, 2),
        (64, None, 16),
        (2, "cpu", 0),
        (64, "cpu", 0),
        (1, "cuda", 0),
        (2, "cuda", 1),
        (16, "cuda", 8),
    ],
)
def test_how_many_there_are(cores, models, expected):
    assert usual_processes(cores, models) == expected


@pytest.mark.parametrize("method", ["blade", "dsir", "classifier"])
def test_a_run_decides_the_same_with_and_without(method, tmp_path, monkeypatch):
    inputs = write_plain_pool(tmp_path)
    without = run_tiny(inputs, tmp_path / "0", method=method, compute__counting_processes=0)
    monkeypatch.setattr(TextTokenizer, "decode", lambda self, documents: no_decoding(documents))
    beside = run_tiny(inputs, tmp_path / "2", method=method, compute__counting_processes=2)
    assert data_digests(beside) == data_digests(without)
    ours, theirs = log_rows(beside), log_rows(without)
    for rows in (ours, theirs):
        del rows["run"]  # which has the setting
    assert ours == theirs


def test_a_run_goes_on_with_another_number(tmp_path):
    inputs = write_plain_pool(tmp_path)
    settings = {"method": "dsir", "compute__threads": 1}
    once = run_tiny(inputs, tmp_path / "out", **settings)
    before = snapshot(once.out)
    run_tiny(inputs, tmp_path / "out", **settings, compute__counting_processes=2)
    assert snapshot(once.out) == before
