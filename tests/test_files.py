import pytest

from curate.errors import OutputFailed
from curate.files import atomic_path, sha256_file, write_text


def test_success_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "folder" / "file.bin"
    for content in (b"first", b"second, longer"):
        with atomic_path(path) as temporary:
            assert temporary.parent == path.parent
            temporary.write_bytes(content)
            if content != b"first":
                assert path.read_bytes() == b"first"
        assert path.read_bytes() == content
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_the_old_file_and_no_temporary(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")

    def fail():
        with atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_failure_of_a_first_write_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("")
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_nothing_written_is_an_error_and_keeps_the_old_file(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(OutputFailed), atomic_path(tmp_path / "file"):
        pass
    assert [one.read_text() for one in tmp_path.iterdir()] == ["old"]


def test_what_a_killed_run_left_is_not_mixed_in(tmp_path):
    path = tmp_path / "file"
    with atomic_path(path) as temporary:
        name = temporary.name
        temporary.write_text("x")
    (tmp_path / name).write_text("left by a killed process")
    with atomic_path(path) as temporary, temporary.open("a") as appended:
        appended.write("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_utf8_and_digest_is_of_the_bytes(tmp_path):
    write_text(tmp_path / "file", "é\n")
    assert (tmp_path / "file").read_bytes() == b"\xc3\xa9\n"
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
