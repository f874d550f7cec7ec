"""What remote storage raises is storage out of reach, whatever its kind; damage stays damage."""

import gzip
import io
import json

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from curate.errors import DamagedShard, InvalidInput
from curate.read.corpus import open_corpus
from curate.read.remote import RemoteStream


class OwnError(Exception):
    """As of aiohttp, botocore and gcsfs: neither an OSError nor a ValueError."""


ERRORS = [
    OSError("Forbidden: no access to it"),
    ValueError("Bad Request: what is this"),
    OwnError("Too Many Requests"),
    ConnectionResetError("gone"),
    KeyError("token"),
]


class Flaky(io.BytesIO):
    """An open file that fails from some call on."""

    def __init__(self, data, state):
        super().__init__(data)
        self._state = state

    def read(self, size=-1):
        self._state["left"] -= 1
        if self._state["left"] < 0:
            raise self._state["error"]
        return super().read(size)


class FlakyStorage(MemoryFileSystem):
    protocol = "flaky"
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    state: dict = {}  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("flaky://").strip("/")

    def unstrip_protocol(self, name):
        return "flaky://" + name.lstrip("/")

    def _open(self, path, mode="rb", **options):
        if mode != "rb":
            return super()._open(path, mode, **options)
        if self.state["left"] == 0:
            raise self.state["error"]
        return Flaky(self.store[path].getvalue(), self.state)


TEXTS = [f"{number:0900d}" for number in range(4000)]


def as_parquet():
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": TEXTS}), sink, row_group_size=500, compression="none")
    return sink.getvalue()


def as_lines():
    return "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


FORMATS = {
    "a.parquet": as_parquet,
    "a.jsonl": as_lines,
    "a.jsonl.gz": lambda: gzip.compress(as_lines(), 1),
}


@pytest.fixture(params=FORMATS)
def shard(request, monkeypatch):
    """The address of a shard on storage that fails when its state says so, and the state."""
    fsspec.register_implementation("flaky", FlakyStorage, clobber=True)
    monkeypatch.setattr(FlakyStorage, "store", {})
    monkeypatch.setattr(FlakyStorage, "state", {"left": 10**9, "error": None})
    FlakyStorage().pipe_file(f"/pool/{request.param}", FORMATS[request.param]())
    return f"flaky://pool/{request.param}", FlakyStorage.state


@pytest.mark.parametrize("error", ERRORS, ids=lambda one: type(one).__name__)
def test_storage_that_fails_at_any_call_is_out_of_reach(shard, error):
    address, state = shard
    state["error"] = error

    def texts(calls):
        state["left"] = calls
        corpus = open_corpus(address, tolerant=True)
        return [t for _, b in corpus.iter_batches(corpus.shards[0]) for t in b[0].to_pylist()]

    assert texts(10**9) == TEXTS
    used = 10**9 - state["left"]
    assert used >= 6
    for calls in range(used):
        with pytest.raises(InvalidInput) as caught:
            texts(calls)
        assert not isinstance(caught.value, DamagedShard), calls
        assert caught.value.problem.startswith(f"Shard {address} cannot be opened (")
    assert texts(used) == TEXTS


@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_damage_on_remote_storage_is_damage(shard, keep):
    address, _ = shard
    path = address.removeprefix("flaky:/")
    data = FlakyStorage().cat_file(path)
    FlakyStorage().pipe_file(path, data[: int(len(data) * keep)])
    if address.endswith(".jsonl"):
        (found,) = open_corpus(address, tolerant=True).shards
        assert found.damage is None  # its last row is, see test_jsonl.py
        return
    with pytest.raises(DamagedShard):
        corpus = open_corpus(address, tolerant=True)
        list(corpus.iter_batches(corpus.shards[0]))


def test_a_place_before_the_start_is_no_failure_of_the_storage():
    stream = RemoteStream(io.BytesIO(b"abc"), lambda error: OwnError(str(error)))
    with pytest.raises(ValueError, match="it points to byte -4"):
        stream.seek(-4)
    assert (stream.seek(-1, 2), stream.read(), stream.tell()) == (2, b"c", 3)
