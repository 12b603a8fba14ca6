# SPDX-License-Identifier: Apache-2.0
"""State files: whole or not at all, whatever happens to the bytes, and rows that come back as they were."""

import errno
import json
import os
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from ciliumd.daemon import state
from ciliumd.daemon.state import StateFile
from ciliumd.model.labels import Label, pod_labels
from unit.daemon import nodes

ROWS = {b"1": b'{"pod": "web"}', b"2": "ä".encode()}


@pytest.fixture
def path(tmp_path):
    """Where the file is."""
    return tmp_path / "endpoints.json"


@pytest.fixture
def written(path):
    """The bytes of a file that holds ROWS."""
    assert StateFile(path).update(ROWS) == {}
    return path.read_bytes()


def test_rows_written_are_read_by_the_next_agent(path):
    """Updates add and replace, deletions remove, absent keys are success."""
    first = StateFile(path)
    assert first.name == "endpoints.json"
    assert first.load() == {}
    assert first.update(ROWS) == {}
    assert first.update({b"2": b"x", b"3": b"y"}) == {}
    assert first.delete([b"1", b"9"]) == {}
    assert StateFile(path).load() == {b"2": b"x", b"3": b"y"}
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_cut_anywhere_is_ignored_as_a_whole(path, written):
    """At every offset; the agent says which file and goes on without it."""
    for length in range(len(written)):
        path.write_bytes(written[:length])
        with capture_logs() as logs:
            assert StateFile(path).load() == {}
        assert [(one["event"], one["path"]) for one in logs] == [("state.file_ignored", str(path))]


@pytest.mark.parametrize("mask", [0x01, 0x04, 0x20, 0x80, 0xFF])
def test_a_file_with_a_wrong_byte_is_never_half_read(path, written, mask):
    """At every offset: nothing, or the rows as they were."""
    for offset in range(len(written)):
        data = bytearray(written)
        data[offset] ^= mask
        path.write_bytes(data)
        with capture_logs():
            assert StateFile(path).load() in ({}, ROWS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"rows": {}}',
        '{"format": 2, "sha256": "", "rows": {}}',
        '{"format": 1, "sha256": "", "rows": {}}',
        '{"format": 1, "sha256": "", "rows": []}',
        "[" * 100_000,
        "\xff\xfe",
    ],
)
def test_anything_else_is_ignored(path, text):
    """Another format, another shape, no JSON."""
    path.write_bytes(text.encode("latin-1"))
    with capture_logs() as logs:
        assert StateFile(path).load() == {}
    assert logs[0]["event"] == "state.file_ignored"


def test_an_ignored_file_is_replaced_by_the_next_write(path):
    """What cannot be trusted does not stay in the way."""
    path.write_text("garbage")
    with capture_logs():
        file = StateFile(path)
        file.load()
    assert file.update(ROWS) == {}
    assert StateFile(path).load() == ROWS


def test_leftovers_of_a_write_that_was_killed_are_no_hindrance(path, written):
    """The half-written file beside it is overwritten and renamed."""
    aside = path.with_name(path.name + ".new")
    aside.write_bytes(written[: len(written) // 2])
    file = StateFile(path)
    assert file.load() == ROWS
    assert file.update({b"3": b"z"}) == {}
    assert not aside.exists()
    assert StateFile(path).load() == {**ROWS, b"3": b"z"}


def test_what_cannot_be_written_fails_by_key_and_is_not_believed(tmp_path):
    """The directory is gone; once it is back the same rows are written."""
    directory = tmp_path / "state"
    file = StateFile(directory / "identities.json")
    failed = file.update(ROWS)
    assert failed.keys() == ROWS.keys()
    assert all(isinstance(error, FileNotFoundError) for error in failed.values())
    assert file.delete([b"1"]).keys() == {b"1"}
    directory.mkdir()
    assert file.update({b"2": b"x"}) == {}
    assert StateFile(directory / "identities.json").load() == {b"2": b"x"}


def test_a_full_disk_leaves_the_old_file(path, written, monkeypatch):
    """The rename happens only after everything is on disk."""

    def full(_descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    assert set(StateFile(path).update({b"9": b"9"})) == {b"9"}
    assert path.read_bytes() == written


def test_an_unreadable_file_is_told(path):
    """A directory where the file should be."""
    path.mkdir()
    with capture_logs() as logs:
        assert StateFile(path).load() == {}
    assert "directory" in logs[0]["error"]


def test_an_endpoint_comes_back_as_it_was():
    """With either address missing too, and with what was set for it alone."""
    for one in (
        replace(nodes.endpoint(7), audit=True),
        replace(nodes.endpoint(7), audit=False),
        nodes.endpoint(7),
        nodes.endpoint(8, address=ip_address("10.0.0.9")),
        state.endpoint_of(state.endpoint_row(nodes.endpoint(9))[1]),
    ):
        key, value = state.endpoint_row(one)
        assert key == str(one.id).encode()
        assert state.endpoint_of(value) == one


def test_an_endpoint_of_which_nothing_is_set_is_read_by_an_agent_of_before():
    """It refuses rows with fields that it does not know."""
    assert "audit" not in json.loads(state.endpoint_row(nodes.endpoint(7))[1])
    for wrong in ("yes", 2, []):
        row = json.loads(state.endpoint_row(nodes.endpoint(7))[1]) | {"audit": wrong}
        with pytest.raises(ValueError, match="is no endpoint"):
            state.endpoint_of(json.dumps(row).encode())


NAMES = st.text(st.sampled_from("abcXYZ012-_./"), min_size=1, max_size=12)


@given(labels=st.dictionaries(NAMES, st.text(st.sampled_from("ab=:,/ "), max_size=8), min_size=1, max_size=4))
def test_an_identity_comes_back_as_it_was(labels):
    """Labels with empty values, and with ``=`` and ``:`` in values."""
    wanted = pod_labels("shop", labels, {"team": ""}, "default")
    key, value = state.identity_row(wanted, 300)
    assert state.identity_of(key, value) == (wanted, 300)


def test_a_label_whose_value_looks_like_another_label_comes_back():
    """The first ``=`` ends the key."""
    labels = frozenset({Label("k8s", "a", "k8s:b=c"), Label("k8s", "b", ""), Label("k8s", "c", "=")})
    assert state.identity_of(*state.identity_row(labels, 256)) == (labels, 256)


@pytest.mark.parametrize("text", ["10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32", "::/1"])
def test_a_prefix_comes_back_as_it_was(text):
    """Both families."""
    row = state.prefix_row(ip_network(text), 1 << 24)
    assert state.prefix_of(*row) == (ip_network(text), 1 << 24)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"[]",
        b"{}",
        json.dumps({**json.loads(state.endpoint_row(nodes.endpoint(1))[1]), "color": 1}).encode(),
        json.dumps({**json.loads(state.endpoint_row(nodes.endpoint(1))[1]), "ipv4": "10.0"}).encode(),
    ],
)
def test_a_row_that_is_no_endpoint_says_so(value):
    """ValueError, for whoever restores to leave it out."""
    with pytest.raises(ValueError, match=r"."):
        state.endpoint_of(value)


@pytest.mark.parametrize("value", [b"", b"[]", b"{}", b"[1]", b'"k8s:a"', b'["=x"]'])
def test_a_row_that_is_no_identity_says_so(value):
    """An identity without labels would be everybody's."""
    with pytest.raises(ValueError, match=r"."):
        state.identity_of(b"300", value)


def in_two(path):
    """A file of which there are two, and the second."""
    return StateFile(path, twice=True), path.with_name(path.name + ".copy")


@pytest.mark.parametrize("damaged", [0, 1])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_of_two_files_one_is_enough_and_the_other_comes_back(path, damage, damaged):
    """Whichever it is, and whatever became of it: the rows are there, and then both are as they were."""
    file, copy = in_two(path)
    assert file.update(ROWS) == {}
    whole = path.read_bytes()
    assert copy.read_bytes() == whole
    one = (path, copy)[damaged]
    if damage == "gone":
        one.unlink()
    else:
        one.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    assert in_two(path)[0].load() == ROWS
    assert path.read_bytes() == copy.read_bytes() == whole


def test_of_two_files_the_first_is_the_newer(path):
    """A write that was killed between them: what it wrote counts."""
    file, copy = in_two(path)
    file.update(ROWS)
    before = copy.read_bytes()
    file.update({b"3": b"z"})
    copy.write_bytes(before)
    again = in_two(path)[0]
    assert again.load() == {**ROWS, b"3": b"z"}
    assert copy.read_bytes() == path.read_bytes() != before


def test_two_damaged_files_are_none(path):
    """Nothing is believed, and nothing is written before somebody has rows."""
    file, copy = in_two(path)
    file.update(ROWS)
    for one in (path, copy):
        one.write_bytes(b"{")
    assert in_two(path)[0].load() == {}
    assert path.read_bytes() == copy.read_bytes() == b"{"


def test_rows_are_there_although_the_second_file_cannot_be_mended(path, monkeypatch):
    """A directory that takes nothing is told when something has to be written."""
    file, _ = in_two(path)
    file.update(ROWS)
    path.write_bytes(b"{")
    monkeypatch.setattr(state, "write_rows", _refuse)
    again = in_two(path)[0]
    assert again.load() == ROWS
    assert again.update({b"3": b"z"}).keys() == {b"3"}


def _refuse(path, rows):
    raise OSError(errno.EROFS, "read-only", str(path))
