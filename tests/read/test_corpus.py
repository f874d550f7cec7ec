import errno
import hashlib
import importlib
import importlib.util
import os

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import InvalidInput
from curate.read.corpus import display_uri, open_corpus
from curate.read.locate import connect, short_reason


def write(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns or {"text": [path.stem]}), path)
    return path


def texts(corpus):
    return [
        value
        for shard in corpus.shards
        for _, batch in corpus.iter_batches(shard, [corpus.text_column])
        for value in batch[0].to_pylist()
    ]


def error_of(source, **options):
    with pytest.raises(InvalidInput) as caught:
        open_corpus(str(source), **options)
    return caught.value.problem, caught.value.remedy


def test_folder_is_recursive_sorted_and_skips_hidden_names(tmp_path):
    for name in ("b", "a/z", "_hidden", ".dot", "_tmp/x", "a/.cache/x"):
        write(tmp_path / f"{name}.parquet")
    (tmp_path / "README.md").write_text("no shard")
    corpus = open_corpus(str(tmp_path))
    assert [s.uri for s in corpus.shards] == [
        f"{tmp_path}/a/z.parquet",
        f"{tmp_path}/b.parquet",
    ]
    assert [s.shard_id for s in corpus.shards] == [0, 1]
    assert texts(corpus) == ["z", "b"]


def test_hidden_parts_above_the_source_do_not_matter(tmp_path):
    write(tmp_path / "_x/.y/a.parquet")
    assert texts(open_corpus(f"{tmp_path}/_x/.y")) == ["a"]
    assert texts(open_corpus(f"{tmp_path}/_x/.y/*.parquet")) == ["a"]
    assert texts(open_corpus(str(write(tmp_path / "_named.parquet")))) == ["_named"]


def test_glob_takes_files_and_folders(tmp_path):
    for name in ("d1/a", "d1/sub/b", "d2/c", "e/d"):
        write(tmp_path / f"{name}.parquet")
    assert texts(open_corpus(f"{tmp_path}/d*")) == ["a", "b", "c"]
    assert texts(open_corpus(f"{tmp_path}/*/*.parquet")) == ["a", "c", "d"]
    assert texts(open_corpus(f"{tmp_path}/**/*.parquet")) == ["a", "b", "c", "d"]
    assert texts(open_corpus(f"{tmp_path}/d[2]/?.parquet")) == ["c"]


def test_glob_characters_in_a_real_name(tmp_path):
    write(tmp_path / "d[1]/a.parquet")
    assert texts(open_corpus(f"{tmp_path}/d[1]")) == ["a"]


def test_folder_named_like_a_shard(tmp_path):
    write(tmp_path / "pool.parquet/part-0.parquet")
    assert texts(open_corpus(f"{tmp_path}/pool.parquet")) == ["part-0"]


def test_relative_and_linked_paths(tmp_path, monkeypatch):
    write(tmp_path / "blobs/xyz.parquet")
    (tmp_path / "snap").mkdir()
    (tmp_path / "snap/a.parquet").symlink_to("../blobs/xyz.parquet")
    monkeypatch.chdir(tmp_path / "blobs")
    corpus = open_corpus("../snap")
    assert [s.uri for s in corpus.shards] == [f"{tmp_path}/snap/a.parquet"]
    assert texts(corpus) == ["xyz"]
    (tmp_path / "link").symlink_to(tmp_path / "snap")
    assert open_corpus(f"{tmp_path}/link").shards[0].uri == f"{tmp_path}/link/a.parquet"


@pytest.mark.parametrize("source", ["memory://pool-x", "memory://pool-x/*.parquet"])
def test_memory_url(source):
    memory = fsspec.filesystem("memory")
    for name in "ba":
        with memory.open(f"/pool-x/{name}.parquet", "wb") as stream:
            pq.write_table(pa.table({"text": [name]}), stream)
    corpus = open_corpus(source)
    assert [s.uri for s in corpus.shards] == [
        "memory:///pool-x/a.parquet",
        "memory:///pool-x/b.parquet",
    ]
    assert texts(corpus) == ["a", "b"]


def test_file_url(tmp_path):
    path = write(tmp_path / "a.parquet")
    corpus = open_corpus(f"file://{path}")
    assert corpus.shards[0].uri == str(path)
    assert texts(corpus) == ["a"]


def test_shard_facts(tmp_path):
    path = write(tmp_path / "a.parquet", text=[f"{i:0300d}" * 10 for i in range(200)])
    data = path.read_bytes()
    (shard,) = open_corpus(str(path)).shards
    edges = data[:65536] + data[max(0, len(data) - 65536) :]
    assert shard.fingerprint == hashlib.sha256(str(len(data)).encode() + edges).hexdigest()
    assert (shard.bytes, shard.rows, shard.format) == (len(data), 200, "parquet")


def test_column_order_may_differ(tmp_path):
    write(tmp_path / "a.parquet", text=["a"], n=[1])
    write(tmp_path / "b.parquet", n=[2], text=["b"])
    corpus = open_corpus(str(tmp_path))
    for shard in corpus.shards:
        for _, batch in corpus.iter_batches(shard):
            assert batch.schema.equals(corpus.schema)
    assert texts(corpus) == ["a", "b"]


def test_missing_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    remedy = (
        "Check the spelling, or give a Parquet or JSONL file, a folder, a glob, a URL or hf:NAME."
    )
    assert error_of("./no/where") == ("The pool path does not exist: ./no/where.", remedy)
    assert error_of("memory://no/where", role="target") == (
        "The target path does not exist: memory://no/where.",
        remedy,
    )


@pytest.mark.parametrize("tail", ["", "/*.parquet", "/README.md"])
def test_nothing_found(tmp_path, tail):
    (tmp_path / "README.md").write_text("no shard")
    assert error_of(f"{tmp_path}{tail}") == (
        f"No shards were found for the pool in {tmp_path}{tail}.",
        "Give a path with .parquet, .jsonl, .jsonl.gz or .jsonl.zst files in it.",
    )


def test_no_text_column(tmp_path):
    write(tmp_path / "a.parquet", a=["x"], b=["x"], c=[1])
    assert error_of(tmp_path) == (
        'The pool has no column "text" (it has: a, b, c).',
        "Name the column that holds the text with --text-column.",
    )


def test_text_column_of_another_type(tmp_path):
    write(tmp_path / "a.parquet", body=[[1]])
    assert error_of(tmp_path, role="target", text_column="body") == (
        'Column "body" of the target holds list<element: int64>, not text.',
        "Name a string column with --set target_text_column=NAME.",
    )


@pytest.mark.parametrize(
    ("columns", "name", "theirs", "ours"),
    [
        ({"text": ["b"], "n": ["x"]}, "n", "string", "int64"),
        ({"text": ["b"]}, "n", "absent", "int64"),
        ({"text": ["b"], "n": [1], "z": [1.0]}, "z", "double", "absent"),
    ],
)
def test_schema_differs(tmp_path, columns, name, theirs, ours):
    one = write(tmp_path / "a.parquet", text=["a"], n=[1])
    two = write(tmp_path / "b.parquet", **columns)
    assert error_of(tmp_path) == (
        f'Shard {two} has column "{name}" as {theirs}, but shard {one} has it as {ours}.',
        "Make the columns of all shards alike, or run on shards of one kind.",
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"PAR1" + b"x" * 100, "Parquet magic bytes not found in footer"),
        (b"", "Parquet file size is 0 bytes"),
    ],
)
def test_unreadable_footer(tmp_path, data, reason):
    write(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(data)
    assert error_of(tmp_path) == (
        f"Shard {tmp_path}/b.parquet is not a readable Parquet file ({reason}).",
        "Repair or remove the shard.",
    )


def test_reserved_column(tmp_path):
    write(tmp_path / "a.parquet", text=["a"], curate_score=[1.0])
    assert error_of(tmp_path, reserved_columns=["curate_weight", "curate_score"]) == (
        'The pool already has a column "curate_score", which the output needs.',
        "Rename or drop that column first.",
    )


def test_mixed_formats(tmp_path):
    write(tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n')
    assert error_of(tmp_path) == (
        f"The pool in {tmp_path} mixes Parquet and JSONL shards.",
        "Give a folder or a glob with shards of one format.",
    )


@pytest.mark.parametrize(
    ("source", "package", "shown", "remedy"),
    [
        ("s3://KEY:SECRET@b/x", "s3fs", "s3://b/x", "Run: pip install 'curate[s3]'."),
        ("gs://b/x", "gcsfs", "gs://b/x", "Run: pip install 'curate[gcs]'."),
        (
            "https://u:SECRET@h/x?t=SECRET",
            "aiohttp",
            "https://h/x",
            'HTTPFileSystem requires "requests" and "aiohttp" to be installed.',
        ),
    ],
)
def test_missing_backend(source, package, shown, remedy):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    assert error_of(source) == (
        f"The pool {shown} needs a storage package that is not installed.",
        remedy,
    )


def test_unknown_protocol():
    problem, _ = error_of("nope://u:SECRET@h/x")
    assert problem == "The pool address nope://h/x is not usable (Protocol not known: nope)."


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("/data/a@b:c?.parquet", "/data/a@b:c?.parquet"),
        ("./rel/x.parquet", "./rel/x.parquet"),
        ("s3://bucket/a@b.parquet", "s3://bucket/a@b.parquet"),
        ("s3://bucket/part-?.parquet", "s3://bucket/part-?.parquet"),
        ("s3://KEY:SE/CR+ET@bucket/a.parquet", "s3://bucket/a.parquet"),
        ("s3://bucket/a.parquet?versionId=SECRET", "s3://bucket/a.parquet"),
        ("https://u:p@h:8080/x.parquet?t=SECRET#f", "https://h:8080/x.parquet"),
        ("https://h:8080/a@b.parquet", "https://h:8080/a@b.parquet"),
        ("https://u:p@ss@h/x", "https://h/x"),
        ("simplecache::https://u:p@h/x?t=1", "simplecache::https://h/x"),
        ("hf://datasets/o/n@main/x.parquet", "hf://datasets/o/n@main/x.parquet"),
        ("abfs://container@account.net/x", "abfs://container@account.net/x"),
        ("file:///d/part-?.parquet", "file:///d/part-?.parquet"),
    ],
)
def test_display_uri(url, shown):
    assert display_uri(url) == shown
    assert display_uri(shown) == shown


SAFE = st.text("abcXYZ019-_.", min_size=1, max_size=12)
# The marks keep a secret from occurring in the rest of the URL by chance.
SECRET = st.text("abcXYZ019/+=:!", min_size=1, max_size=12).map(lambda s: f"Q{s}Q")


@given(st.sampled_from(["s3", "gs", "https", "ftp"]), SAFE, SECRET, SAFE, SAFE, SECRET)
def test_display_uri_never_shows_a_secret(scheme, user, secret, host, path, token):
    shown = display_uri(f"{scheme}://{user}:{secret}@{host}/{path}?token={token}")
    assert shown == f"{scheme}://{host}/{path}"


def test_reasons_are_one_short_clean_sentence():
    error = OSError("GET https://u:SECRET@h/x?t=SECRET failed. More.\nAnd more.")
    assert short_reason(error) == "GET https://h/x failed"
    assert len(short_reason(OSError("x" * 1000))) == 160
    assert short_reason(OSError()) == "OSError"


class Vault(fsspec.get_filesystem_class("memory")):
    """A filesystem that, like s3fs, takes its login as options and its path without one."""

    protocol = "s3"
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    cachable = False

    def __init__(self, key="", secret="", **options):
        super().__init__(**options)
        self.login = (key, secret)

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("s3://").strip("/")

    def unstrip_protocol(self, name):
        return "s3://" + name.lstrip("/")


@pytest.fixture
def vault(monkeypatch):
    monkeypatch.setitem(importlib.import_module("fsspec.registry")._registry, "s3", Vault)
    return Vault


def test_login_in_an_s3_url_opens_but_is_never_shown(vault):
    with vault().open("/bucket/a.parquet", "wb") as stream:
        pq.write_table(pa.table({"text": ["a"]}), stream)
    fs, path = connect("s3://KEY:SE/CR%2BET@bucket/a.parquet", "pool")
    assert (fs.login, path) == (("KEY", "SE/CR+ET"), "/bucket/a.parquet")
    corpus = open_corpus("s3://KEY:SECRET@bucket/*.parquet")
    assert corpus.shards[0].uri == "s3://bucket/a.parquet"
    assert texts(corpus) == ["a"]
    assert "SECRET" not in repr(corpus)
    problem, _ = error_of("s3://KEY:SECRET@bucket/none")
    assert problem == "The pool path does not exist: s3://bucket/none."


def test_linked_folders_are_followed_but_not_in_circles(tmp_path):
    write(tmp_path / "other" / "sub" / "a.parquet")
    write(tmp_path / "pool" / "b.parquet")
    (tmp_path / "pool" / "link").symlink_to("../other")
    (tmp_path / "other" / "sub" / "up").symlink_to("..")
    (tmp_path / "pool" / "itself").symlink_to(".")
    corpus = open_corpus(str(tmp_path / "pool"))
    assert [shard.uri.removeprefix(f"{tmp_path}/pool/") for shard in corpus.shards] == [
        "b.parquet",
        "link/sub/a.parquet",
    ]


def refuse_folder_b(monkeypatch):
    """As the system refuses a folder that may not be read; root may read any."""
    scandir = os.scandir

    def refused(place):
        if str(place).endswith("/b"):
            raise PermissionError(errno.EACCES, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refused)


def test_a_folder_that_may_not_be_read_is_no_empty_one(tmp_path, monkeypatch):
    write(tmp_path / "a" / "a.parquet")
    write(tmp_path / "b" / "b.parquet")
    refuse_folder_b(monkeypatch)
    assert error_of(tmp_path) == (
        f"The pool path {tmp_path} cannot be read ([Errno 13] Permission denied: '{tmp_path}/b').",
        "Check the address and your access to it.",
    )


@pytest.mark.parametrize("pattern", ["*/*.parquet", "**/*.parquet", "*", "**", "[ab]/?.parquet"])
def test_a_glob_follows_links_and_tells_of_what_may_not_be_read(tmp_path, monkeypatch, pattern):
    """What it leaves out without a word, nobody misses."""
    write(tmp_path / "pool" / "a" / "a.parquet")
    write(tmp_path / "other" / "b.parquet")
    (tmp_path / "pool" / "b").symlink_to("../other")
    (tmp_path / "pool" / "a" / "up").symlink_to("..")
    source = f"{tmp_path}/pool/{pattern}"
    assert texts(open_corpus(source)) == ["a", "b"]
    refuse_folder_b(monkeypatch)
    problem, _ = error_of(source)
    assert problem.startswith(f"The pool path {source} cannot be read ([Errno 13] Permission")
    assert texts(open_corpus(f"{tmp_path}/pool/a*/*.parquet")) == ["a"]  # which has nothing of b


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("**", ["1", "2", "3", "4"]),
        ("**/d/*", ["2", "3", "4"]),
        ("d/**/3.parquet", ["3"]),
        ("d/*", ["2", "3", "4"]),
        ("d/*.parquet", ["2"]),
        ("*/d", ["3", "4"]),
        ("*/d/**/4*", ["4"]),
        ("[!d]*", ["1"]),
        ("d/?", ["3", "4"]),
    ],
)
def test_glob_patterns(tmp_path, pattern, found):
    for name in ("1", "d/2", "d/d/3", "d/d/e/4", "_d/5", "d/.e/6"):
        write(tmp_path / f"{name}.parquet")
    assert texts(open_corpus(f"{tmp_path}/{pattern}")) == found
    remote = f"memory://glob-{tmp_path.name}"
    memory = fsspec.filesystem("memory")
    for path in tmp_path.rglob("*.parquet"):
        memory.pipe(f"/glob-{tmp_path.name}/{path.relative_to(tmp_path)}", path.read_bytes())
    assert texts(open_corpus(f"{remote}/{pattern}")) == found  # as fsspec has it


def test_a_name_that_is_not_utf_8(tmp_path):
    write(tmp_path / "a.parquet").rename(tmp_path / os.fsdecode(b"b\xff.parquet"))
    assert error_of(tmp_path) == (
        rf"The name of shard {tmp_path}/b\udcff.parquet is not UTF-8.",
        "Rename the file.",
    )


@pytest.mark.parametrize(
    "source", ["~nobody-of-that-name/x.parquet", "zip://a.parquet::/nope.zip", "reference://x"]
)
def test_storage_that_fails_at_once(source):
    problem, remedy = error_of(source)
    assert problem.startswith(f"The pool path {source} cannot be read (")
    assert remedy == "Check the address and your access to it."
