import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import InvalidInput, OutputFailed
from curate.files import (
    SEAL,
    atomic_path,
    check_contained,
    json_text,
    sealed_json_text,
    sha256_file,
    write_text,
)

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=9,
)


@given(st.dictionaries(st.text(), PLAIN, max_size=4))
def test_a_seal_is_the_last_entry_of_the_same_text(tree):
    tree.pop(SEAL, None)
    digest = hashlib.sha256(json_text(tree).encode()).hexdigest()
    sealed = json_text({**tree, SEAL: digest})
    assert sealed_json_text(tree) == sealed_json_text({SEAL: "another", **tree}) == sealed


def test_links_that_lead_out_of_a_folder_are_found_at_any_depth(tmp_path):
    folder = tmp_path / "folder"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "file").touch()
    (folder / "a" / "b" / "up").symlink_to("../..")
    (folder / "a" / "b" / "inside").symlink_to("file")
    (folder / "a" / "b" / "nowhere").symlink_to("no such")
    (tmp_path / "link").symlink_to(folder)
    for place in (folder, tmp_path / "link"):
        check_contained(place)
    (folder / "a" / "b" / "out").symlink_to("../../..")
    for place in (folder, tmp_path / "link"):
        with pytest.raises(InvalidInput) as caught:
            check_contained(place)
        assert caught.value.problem == (f"{place}/a/b/out is a link that leads out of its folder.")


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
