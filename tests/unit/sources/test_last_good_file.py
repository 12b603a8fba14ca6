# SPDX-License-Identifier: Apache-2.0
"""The file of last good documents: what comes back from it, and what is done about a damaged one."""

from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ciliumd.sources.lastgood import LastGoodFile
from ciliumd.statefile import write_rows
from unit.sources.followed import MALFORMED, Followed, pod

POLICY_P = ("CiliumNetworkPolicy", "default", "p")


def test_documents_come_back_from_the_file_as_they_were(tmp_path: Path) -> None:
    """Also those of awkward names; nothing else is left in the directory."""
    store = LastGoodFile(tmp_path / "last-good.json")
    documents = {("a b\n:.yaml", POLICY_P): '{"a":"\\n\\u00e9"}', ("b.json", ("Pod", "", "")): "{}"}
    store.save(documents)

    assert LastGoodFile(tmp_path / "last-good.json").load() == documents
    assert [path.name for path in tmp_path.iterdir()] == ["last-good.json"]


def test_missing_file_is_no_document(tmp_path: Path) -> None:
    """The first start has none, and says so."""
    with capture_logs() as logs:
        assert LastGoodFile(tmp_path / "nosuch.json").load() == {}

    assert [(one["event"], one["log_level"]) for one in logs] == [("lastgood.file_missing", "info")]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"\x00\xff" * 50),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"web", b"gap")),
        lambda path: path.write_bytes(b"[" * 100_000),
        lambda path: write_rows(path, {"no key": "{}"}),
        lambda path: write_rows(path, {"5": "{}"}),
    ],
    ids=["noise", "cut", "changed", "deep", "odd key", "another odd key"],
)
def test_damaged_file_is_ignored_and_replaced(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    """It is named in the log, the agent starts without it and writes a good one."""
    path = tmp_path / "last-good.json"
    directory = tmp_path / "manifests"
    directory.mkdir()
    followed = Followed(directory, LastGoodFile(path))
    followed.write("a.yaml", pod("one"))
    followed.write("b.yaml", pod("two"))
    followed.scan()
    damage(path)
    followed.write("b.yaml", MALFORMED, age=5)
    followed.restart()
    with capture_logs() as logs:
        followed.scan()

    assert ("lastgood.file_ignored", str(path)) in [(one["event"], one.get("path")) for one in logs]
    assert followed.pods() == {"one": "web"}
    assert set(LastGoodFile(path).load()) == {("a.yaml", ("Pod", "default", "one"))}


def test_directory_of_the_file_that_is_gone_is_a_problem(tmp_path: Path) -> None:
    """The problem names the file."""
    directory = tmp_path / "manifests"
    directory.mkdir()
    path = tmp_path / "nosuch" / "last-good.json"
    followed = Followed(directory, LastGoodFile(path))
    followed.write("a.yaml", pod("one"))
    followed.scan()

    assert followed.pods() == {"one": "web"}
    assert "No such file or directory" in followed.problems()["State", "", str(path)].message
