# SPDX-License-Identifier: Apache-2.0
"""DELs that waited: names of files, with nothing in them that could be cut."""

import pytest
from structlog.testing import capture_logs

from ciliumd.cni.queue import DeleteQueue
from ciliumd.cni.request import Attachment


def test_no_directory_is_an_empty_queue(tmp_path):
    """Nobody was ever turned away."""
    queue = DeleteQueue(tmp_path / "none")
    assert queue.entries() == []
    queue.done(Attachment("c1", "eth0"))


def test_entries_are_their_names(tmp_path):
    """Until they are done; a second time is fine."""
    (tmp_path / "c1:eth0").touch()
    (tmp_path / "c2.x-y_z:net1").touch()
    queue = DeleteQueue(tmp_path)
    first, second = queue.entries()
    assert (first, second) == (("c1", "eth0"), ("c2.x-y_z", "net1"))
    queue.done(first)
    queue.done(first)
    assert queue.entries() == [second]


@pytest.mark.parametrize("size", range(len("container-1:eth0") + 1))
def test_a_name_cut_anywhere_deletes_nobody_else(tmp_path, size):
    """What could be made of half a name is another attachment, which does not exist, or none."""
    name = "container-1:eth0"[:size]
    if name:
        (tmp_path / name).write_text("whatever is in it")
    found = DeleteQueue(tmp_path).entries()
    assert found == ([(name.split(":")[0], name.split(":")[1])] if size > len("container-1:") else [])


def test_what_is_no_entry_is_told_once_and_stays(tmp_path):
    """An operator's note, a leftover of another version."""
    for name in ("README", ":eth0", "c1:"):
        (tmp_path / name).touch()
    queue = DeleteQueue(tmp_path)
    with capture_logs() as logs:
        assert queue.entries() == queue.entries() == []
    assert sorted(one["path"] for one in logs) == [str(tmp_path / one) for one in (":eth0", "README", "c1:")]
    assert len(list(tmp_path.iterdir())) == 3
