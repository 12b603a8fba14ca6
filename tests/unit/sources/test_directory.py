# SPDX-License-Identifier: Apache-2.0
"""A directory of manifests: what is in force, what is reported, and what a slip must not take away."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ciliumd import resources
from ciliumd.sources import directory as directory_module
from ciliumd.sources.directory import DirectorySource
from ciliumd.tables import Problem
from unit.sources.followed import BAD_POLICY, Followed, pod, policy


@pytest.fixture
def followed(tmp_path: Path) -> Followed:
    """An empty followed directory."""
    return Followed(tmp_path)


def test_documents_lists_and_json_become_rows(followed: Followed) -> None:
    """Several documents, a List, JSON; other files are not looked at."""
    followed.write("a.yaml", pod("one") + "---\n---\n" + pod("two"))
    listed = "\n".join("  " + line for line in pod("three").splitlines())
    followed.write("b.yml", f"apiVersion: v1\nkind: List\nitems:\n-{listed[1:]}\n")
    followed.write(
        "c.json",
        '{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "four", "labels": {"app": "j"}}}',
    )
    followed.write("notes.txt", "not: [yaml")
    followed.write(".hidden.yaml", "not: [yaml")
    followed.scan()

    assert followed.pods() == {"one": "web", "two": "web", "three": "web", "four": "j"}
    assert followed.problems() == {}


def test_tables_are_initialized_by_the_first_full_scan(followed: Followed) -> None:
    """Also by that of an empty directory; not before."""
    assert not followed.tables.pods.initialized
    followed.scan()

    assert followed.tables.pods.initialized
    assert followed.tables.policies.initialized
    assert not followed.tables.endpoints.initialized, "somebody else knows the endpoints"


def test_changed_object_changes_its_row_and_unchanged_files_are_not_read(followed: Followed) -> None:
    """Only what changed is read and written."""
    followed.write("a.yaml", pod("one"))
    followed.write("b.yaml", pod("two"))
    followed.scan()
    revision = followed.tables.pods.revision
    followed.scan()
    assert revision == followed.tables.pods.revision
    assert followed.source.status().files_read == 2

    followed.write("a.yaml", pod("one", app="db"), age=5)
    followed.scan()

    assert followed.pods() == {"one": "db", "two": "web"}
    assert followed.tables.pods.revision == revision + 1
    assert followed.source.status().files_read == 3


def test_deleted_document_and_deleted_file_take_their_rows_along(followed: Followed) -> None:
    """What nobody writes down any more is gone; nothing else is."""
    followed.write("a.yaml", pod("one") + "---\n" + pod("two"))
    followed.write("b.yaml", pod("three"))
    followed.scan()
    followed.write("a.yaml", pod("two"), age=5)
    followed.scan()
    assert followed.pods() == {"two": "web", "three": "web"}

    followed.remove("b.yaml")

    assert followed.pods() == {"two": "web"}


def test_file_that_vanishes_for_a_moment_keeps_its_rows(followed: Followed) -> None:
    """Editors rename the old file away before they write the new one."""
    followed.write("a.yaml", pod("one"))
    followed.scan()
    (followed.path / "a.yaml").rename(followed.path / "a.yaml~")
    assert not followed.scan(), "another look is due soon"
    assert followed.pods() == {"one": "web"}
    followed.write("a.yaml", pod("one", app="db"))
    followed.scan()

    assert followed.pods() == {"one": "db"}


def test_object_in_two_files_belongs_to_the_first_by_name(followed: Followed) -> None:
    """Both files are named, in whatever order they came; the second takes over when the first is gone."""
    followed.write("b.yaml", pod("one", app="b"))
    followed.scan()
    followed.write("a.yaml", "# a comment\n---\n" + pod("one", app="a"))
    followed.scan()

    assert followed.pods() == {"one": "a"}
    problem = followed.problems()["Pod", "default", "one"]
    assert problem == Problem("", "is also in b.yaml:1, which is ignored", "a.yaml:3")

    followed.remove("a.yaml")

    assert followed.pods() == {"one": "b"}
    assert followed.problems() == {}


@pytest.mark.parametrize(
    ("name", "text", "line", "message"),
    [
        ("bad.yaml", pod("new") + "---\nkey: [1, 2\nother: 3\n", 6, "expected"),
        ("bad.yaml", "a: 1\na: 2\n", 2, "key 'a' is given twice"),
        ("bad.yaml", "a: &x 1\nb: \x07\n", 2, ""),
        ("bad.yaml", b"a: 1\nb: \xff\xfe\n", 2, "is not UTF-8 text"),
        ("bad.yaml", "kind: List\nitems: 5\n", 1, "the items of a List must be a list"),
        ("bad.yaml", "[" * 100_000, 1, ""),
        ("bad.json", '{"a":\n 1,\n "b" 2}', 3, "':' delimiter"),
        ("bad.json", "[" * 100_000, 1, "nested too deeply"),
    ],
)
def test_malformed_file_is_reported_with_its_line_and_keeps_its_rows(
    followed: Followed, name: str, text: str | bytes, line: int, message: str
) -> None:
    """What the file had when it was last read stays, other files go on, and it is counted."""
    good = pod("one") if name.endswith("yaml") else '{"apiVersion": "v1", "kind": "Pod", "metadata": '
    followed.write(
        name, good if name.endswith("yaml") else good + '{"name": "one", "labels": {"app": "web"}}}'
    )
    followed.scan()
    followed.write(name, text, age=5)
    followed.write("other.yaml", pod("two"))
    followed.scan()

    assert followed.pods() == {"one": "web", "two": "web"}
    problem = followed.problems()["File", "", name]
    assert problem.file == f"{name}:{line}"
    assert message in problem.message
    assert "its last good version stays" in problem.message
    assert followed.source.status().files_malformed == 1

    followed.write(name, good if name.endswith("yaml") else '{"apiVersion": "v1", "kind": "List"}', age=4)
    followed.scan()

    assert followed.problems() == {}


def test_unknown_kind_is_reported_and_harms_nobody(followed: Followed) -> None:
    """It names kind and place; the other objects of the file are in force."""
    followed.write(
        "a.yaml",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d, namespace: n}\n---\n" + pod("one"),
    )
    followed.scan()

    assert followed.pods() == {"one": "web"}
    problem = followed.problems()["Deployment", "n", "d"]
    assert (problem.field, problem.file) == ("kind", "a.yaml:1")
    assert "apps/v1 Deployment" in problem.message


def test_object_that_becomes_invalid_keeps_its_last_good_row(followed: Followed) -> None:
    """A policy with a bad field is reported with the field; the one enforced before stays enforced."""
    followed.write("a.yaml", policy("p"))
    followed.scan()
    before = followed.tables.policies.get(("CiliumNetworkPolicy", "default", "p"))
    assert before is not None
    followed.write("a.yaml", policy("p", field=BAD_POLICY), age=5)
    followed.scan()

    assert before == followed.tables.policies.get(("CiliumNetworkPolicy", "default", "p"))
    problem = followed.problems()["CiliumNetworkPolicy", "default", "p"]
    assert problem.field.startswith("spec.ingress[0].fromCIDR")
    assert problem.file == "a.yaml:1"
    assert problem.message.endswith("; its last good version stays")
    assert followed.source.status().objects_invalid == 1

    followed.write("a.yaml", policy("p"), age=4)
    followed.scan()

    assert followed.problems() == {}


def test_object_that_was_never_valid_has_no_row(followed: Followed) -> None:
    """Nothing of it is in force; when its file goes, so does the problem."""
    followed.write("a.yaml", policy("p", field=BAD_POLICY))
    followed.scan()
    assert len(followed.tables.policies) == 0
    assert len(followed.problems()) == 1

    followed.remove("a.yaml")

    assert followed.problems() == {}


def test_deleted_object_does_not_come_back_as_its_last_good_version(followed: Followed) -> None:
    """Memory of good rows ends with the object."""
    followed.write("a.yaml", policy("p"))
    followed.scan()
    followed.remove("a.yaml")
    followed.write("a.yaml", policy("p", field=BAD_POLICY))
    followed.scan()

    assert len(followed.tables.policies) == 0


def test_documents_without_a_name_are_told_apart_by_their_place(followed: Followed) -> None:
    """Two nameless objects are two problems."""
    followed.write("a.yaml", "42\n---\napiVersion: v1\nkind: Pod\n")
    followed.scan()

    assert {problem.file for problem in followed.problems().values()} == {"a.yaml:1", "a.yaml:3"}


def test_timestamps_are_strings_as_in_kubernetes(followed: Followed) -> None:
    """What kubectl prints can be read back, quoted or not."""
    followed.write(
        "a.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: one\n  creationTimestamp: 2024-01-01T00:00:00Z\n"
        "  labels: {app: 2024-01-01}\n",
    )
    followed.scan()

    assert followed.problems() == {}
    assert followed.pods() == {"one": "2024-01-01"}


def test_file_being_written_is_not_read(followed: Followed) -> None:
    """A half-written file takes no rows away; once it is quiet it is read."""
    followed.write("a.yaml", pod("one") + "---\n" + pod("two"))
    followed.scan()
    (followed.path / "a.yaml").write_text(pod("one"))
    assert not followed.scan()
    assert followed.pods() == {"one": "web", "two": "web"}

    followed.write("a.yaml", pod("one"), age=5)
    assert followed.scan()

    assert followed.pods() == {"one": "web"}


def test_first_scan_waits_for_files_being_written(followed: Followed) -> None:
    """Before everything was read nothing may be swept."""
    followed.write("a.yaml", pod("one"), age=0)
    followed.scan()
    assert not followed.tables.pods.initialized

    followed.write("a.yaml", pod("one"), age=5)
    followed.scan()

    assert followed.tables.pods.initialized


def test_file_that_changes_while_it_is_read_is_read_again(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content taken is one the file had as a whole."""
    followed.write("a.yaml", pod("one", app="old"))
    original: Callable[[Path], bytes] = Path.read_bytes
    interrupted: list[Path] = []

    def read_bytes(path: Path) -> bytes:
        data = original(path)
        if not interrupted:
            interrupted.append(path)
            followed.write("a.yaml", pod("one", app="new"), age=5)
            return data[: len(data) // 2]
        return data

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    followed.scan()

    assert followed.pods() == {"one": "new"}
    assert followed.problems() == {}


def test_file_that_never_rests_is_read_after_a_while(followed: Followed) -> None:
    """A file touched for ever must not block the agent's start."""
    followed.write("a.yaml", pod("one"), age=0)
    clock = [time.time()]
    followed.source = DirectorySource(followed.path, followed.tables, settle=5.0, clock=lambda: clock[0])
    followed.scan()
    assert followed.pods() == {}

    clock[0] += directory_module.PATIENCE
    followed.scan()

    assert followed.pods() == {"one": "web"}


def test_directory_that_disappears_deletes_nothing(followed: Followed) -> None:
    """An unmounted directory is a problem, not an empty one."""
    followed.write("a.yaml", pod("one"))
    followed.scan()
    moved = followed.path.rename(followed.path.with_name("elsewhere"))
    for _ in range(3):
        followed.scan()

    assert followed.pods() == {"one": "web"}
    problem = followed.problems()["Directory", "", str(followed.path)]
    assert "No such file or directory" in problem.message
    assert followed.source.status().error == "No such file or directory"

    moved.rename(followed.path)
    followed.scan()

    assert followed.problems() == {}
    assert followed.source.status().error is None


def test_missing_directory_at_the_start_initializes_nothing(tmp_path: Path) -> None:
    """Without having read anything, nothing is known to be absent."""
    followed = Followed(tmp_path / "nosuch")
    followed.scan()

    assert not followed.tables.pods.initialized
    assert len(followed.problems()) == 1


def test_bug_in_one_objects_parser_leaves_the_others_alone(followed: Followed) -> None:
    """An unexpected exception is that object's problem and nobody else's."""

    def parse(document: Any) -> resources.Resource:
        if document["metadata"]["name"] == "bad":
            raise RuntimeError("bug")
        return resources.parse(document)

    followed.source = DirectorySource(followed.path, followed.tables, settle=3.0, parse=parse)
    followed.write("a.yaml", pod("bad") + "---\n" + pod("good"))
    followed.scan()

    assert followed.pods() == {"good": "web"}
    assert "internal error" in followed.problems()["Pod", "default", "bad"].message


def test_running_source_follows_changes_and_rescans_at_once(followed: Followed) -> None:
    """Files written, replaced and deleted arrive without being asked for; a rescan does not wait."""

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110  a file's effect is waited for
                await asyncio.sleep(0.01)

    async def main() -> None:
        source = DirectorySource(followed.path, followed.tables, interval=0.05, settle=0.01)
        running = asyncio.create_task(source.run())
        (followed.path / "a.yaml").write_text(pod("one"))
        await until(lambda: followed.pods() == {"one": "web"})
        (followed.path / "new").write_text(pod("one", app="db"))
        (followed.path / "new").rename(followed.path / "a.yaml")
        await until(lambda: followed.pods() == {"one": "db"})
        (followed.path / "a.yaml").unlink()
        await until(lambda: followed.pods() == {})
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

        patient = DirectorySource(followed.path, followed.tables, interval=3600, settle=0.01)
        running = asyncio.create_task(patient.run())
        await until(lambda: patient.status().initialized)
        followed.write("b.yaml", pod("two"))
        patient.rescan()
        await until(lambda: followed.pods() == {"two": "web"})
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


def test_thousand_objects_are_read_in_one_scan(followed: Followed) -> None:
    """Everything arrives, and the next look reads nothing."""
    followed.write("many.yaml", "---\n".join(pod(f"pod-{number}") for number in range(1000)))
    followed.scan()
    followed.scan()

    assert len(followed.pods()) == 1000
    status = followed.source.status()
    assert (status.files, status.objects, status.files_read, status.problems) == (1, 1000, 1, 0)
