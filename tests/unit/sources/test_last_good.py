# SPDX-License-Identifier: Apache-2.0
"""What was in force stays in force over a restart, whatever somebody did to its file meanwhile."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ciliumd.sources.directory import DirectorySource
from ciliumd.sources.lastgood import Documents, Keeper
from ciliumd.statefile import paced
from unit.sources.followed import BAD_POLICY, MALFORMED, Followed, Memory, pod, policy

STAYS = "; its last good version stays"
POLICY_P = ("CiliumNetworkPolicy", "default", "p")


@pytest.fixture
def memory() -> Memory:
    """An empty store."""
    return Memory()


@pytest.fixture
def followed(tmp_path: Path, memory: Memory) -> Followed:
    """An empty followed directory whose good documents are stored."""
    return Followed(tmp_path, memory)


def test_file_that_is_malformed_at_the_start_has_its_last_good_objects(followed: Followed) -> None:
    """All of them are in force, others go on, and the problem says so; also over a second restart."""
    followed.write("a.yaml", pod("one") + "---\n" + policy("p"))
    followed.write("b.yaml", pod("two"))
    followed.scan()
    row = followed.tables.policies.get(POLICY_P)
    followed.write("a.yaml", MALFORMED, age=5)
    for _ in range(2):
        followed.restart()
        followed.scan()

        assert followed.tables.policies.initialized
        assert followed.pods() == {"one": "web", "two": "web"}
        assert followed.tables.policies.get(POLICY_P) == row
        assert followed.problems()["File", "", "a.yaml"].message.endswith(STAYS)

    followed.write("a.yaml", policy("p"), age=4)
    followed.scan()

    assert followed.pods() == {"two": "web"}
    assert followed.policies() == {"p"}
    assert followed.problems() == {}


def test_object_that_is_invalid_at_the_start_has_its_last_good_rows(followed: Followed) -> None:
    """It stays as it was until its file is right again; also over a second restart."""
    followed.write("a.yaml", policy("p") + "---\n" + pod("one"))
    followed.scan()
    row = followed.tables.policies.get(POLICY_P)
    followed.write("a.yaml", policy("p", BAD_POLICY) + "---\n" + pod("one", app="new"), age=5)
    for _ in range(2):
        followed.restart()
        followed.scan()

        assert followed.tables.policies.get(POLICY_P) == row
        assert followed.pods() == {"one": "new"}
        problem = followed.problems()[POLICY_P]
        assert problem.field.startswith("spec.ingress[0].fromCIDR")
        assert problem.message.endswith(STAYS)

    followed.write("a.yaml", policy("p"), age=4)
    followed.scan()

    assert followed.problems() == {}


def test_invalid_object_in_a_file_that_becomes_malformed_keeps_its_last_good_rows(followed: Followed) -> None:
    """Two slips in a row over two restarts take nothing away."""
    followed.write("a.yaml", policy("p"))
    followed.scan()
    followed.write("a.yaml", policy("p", BAD_POLICY), age=5)
    followed.restart()
    followed.scan()
    followed.write("a.yaml", MALFORMED, age=4)
    followed.restart()
    followed.scan()

    assert followed.policies() == {"p"}
    assert followed.problems()["File", "", "a.yaml"].message.endswith(STAYS)


def test_unreadable_file_counts_as_malformed(followed: Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions lost while the agent was away take no object away."""
    followed.write("a.yaml", pod("one"))
    followed.scan()
    followed.restart()

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    followed.scan()

    assert followed.pods() == {"one": "web"}
    assert followed.problems()["File", "", "a.yaml"].message == f"cannot be read: Permission denied{STAYS}"


def test_unreadable_file_is_read_once_it_can_be(followed: Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine was short of something: the file has not changed, and is told of once."""
    real = Path.read_bytes

    def refuse(path: Path) -> bytes:
        raise OSError(23, "Too many open files in system", str(path))

    followed.write("a.yaml", pod("one"))
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with capture_logs() as logs:
        for _ in range(3):
            followed.scan()
    told = [one["event"] for one in logs if one["event"] == "directory.file_malformed"]
    problems = followed.problems()
    monkeypatch.setattr(Path, "read_bytes", real)
    followed.scan()
    read = followed.source.status().files_read
    followed.scan()

    assert told == ["directory.file_malformed"]
    assert ("File", "", "a.yaml") in problems
    assert followed.pods() == {"one": "web"}
    assert followed.problems() == {}
    assert followed.source.status().files_read == read


def test_object_moved_to_another_file_and_spoilt_keeps_its_last_good_rows(
    followed: Followed, memory: Memory
) -> None:
    """It is known by its kind, namespace and name; the file that is gone is no reason to drop it."""
    followed.write("a.yaml", policy("p"))
    followed.scan()
    (followed.path / "a.yaml").unlink()
    followed.write("b.yaml", policy("p", BAD_POLICY))
    followed.restart()
    followed.scan()

    assert followed.policies() == {"p"}
    assert set(memory.documents) == {("b.yaml", POLICY_P)}


def test_objects_whose_file_is_gone_are_forgotten(followed: Followed, memory: Memory) -> None:
    """Deleting a file while the agent is away deletes what was in it, for good."""
    followed.write("a.yaml", policy("p"))
    followed.write("b.yaml", pod("one"))
    followed.scan()
    (followed.path / "a.yaml").unlink()
    followed.restart()
    followed.scan()
    assert followed.policies() == set()
    assert {file for file, _ in memory.documents} == {"b.yaml"}

    followed.write("a.yaml", policy("p", BAD_POLICY))
    followed.scan()

    assert followed.policies() == set()


def test_object_removed_from_its_file_is_forgotten(followed: Followed, memory: Memory) -> None:
    """A malformed file brings back only what it had at last."""
    followed.write("a.yaml", pod("one") + "---\n" + pod("two"))
    followed.scan()
    followed.write("a.yaml", pod("one"), age=5)
    followed.scan()
    followed.write("a.yaml", MALFORMED, age=4)
    followed.restart()
    followed.scan()

    assert followed.pods() == {"one": "web"}


def test_file_that_never_was_good_has_nothing_in_force(followed: Followed) -> None:
    """And its problem does not claim otherwise."""
    followed.write("a.yaml", MALFORMED)
    followed.write("b.yaml", policy("p", BAD_POLICY))
    followed.scan()

    assert followed.policies() == set()
    assert not any("last good" in problem.message for problem in followed.problems().values())


def test_object_in_two_files_is_kept_for_each(followed: Followed) -> None:
    """The second file takes over when the first is gone, even if it is malformed by then."""
    followed.write("a.yaml", pod("one", app="a"))
    followed.write("b.yaml", pod("one", app="b"))
    followed.scan()
    (followed.path / "a.yaml").unlink()
    followed.write("b.yaml", MALFORMED, age=5)
    followed.restart()
    followed.scan()

    assert followed.pods() == {"one": "b"}


def test_nothing_is_forgotten_before_everything_was_read(followed: Followed, memory: Memory) -> None:
    """An agent that ends during its first look leaves the store as it was."""
    followed.write("a.yaml", policy("p"))
    followed.write("b.yaml", pod("one"))
    followed.scan()
    before = memory.load()
    followed.write("a.yaml", policy("p", BAD_POLICY), age=0)
    followed.restart()
    followed.scan()
    assert not followed.tables.policies.initialized
    assert before == memory.documents

    followed.write("a.yaml", policy("p", BAD_POLICY), age=5)
    followed.scan()

    assert followed.policies() == {"p"}
    assert before == memory.documents


def test_directory_that_is_away_at_the_start_forgets_nothing(followed: Followed, memory: Memory) -> None:
    """What cannot be read is not absent."""
    followed.write("a.yaml", policy("p"))
    followed.scan()
    moved = followed.path.rename(followed.path.with_name("elsewhere"))
    followed.restart()
    followed.scan()
    assert len(memory.documents) == 1

    moved.rename(followed.path)
    followed.write("a.yaml", MALFORMED, age=5)
    followed.scan()

    assert followed.policies() == {"p"}


def test_document_the_new_agent_refuses_is_not_in_force(followed: Followed, memory: Memory) -> None:
    """What an older version took may be invalid by now: it is left out, and nothing else."""
    followed.write("a.yaml", pod("one") + "---\n" + policy("p"))
    followed.scan()
    for key, text in list(memory.documents.items()):
        memory.documents[key] = text.replace('"endpointSelector"', '"endpointPicker"')
    followed.write("a.yaml", MALFORMED, age=5)
    followed.restart()
    with capture_logs() as logs:
        followed.scan()

    assert followed.pods() == {"one": "web"}
    assert followed.policies() == set()
    assert set(followed.problems()) == {("File", "", "a.yaml")}
    (refused,) = [one for one in logs if one["event"] == "lastgood.document_refused"]
    assert refused["object"] == "CiliumNetworkPolicy/default/p"


def _multiplied() -> str:
    """A few lines of YAML that are ten to the ninth strings."""
    levels = [f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 10)}]" for level in range(1, 9)]
    return "{l0: &l0 [x, x, x, x, x, x, x, x, x, x], " + ", ".join(levels) + "}"


@pytest.mark.parametrize(
    ("annotations", "stored"),
    [
        ("{again: 2024-01-01, 7: !!binary aGk=, deep: [{x: .nan}], s: !!set {a, b}}", True),
        ("&loop {again: *loop}", False),
        (_multiplied(), False),
    ],
    ids=["odd values", "endless", "as good as endless"],
)
def test_whatever_yaml_can_say_is_stored_or_left_out(
    followed: Followed, memory: Memory, annotations: str, stored: bool
) -> None:
    """Parts that are no concern of ours never keep an object from being in force."""
    head = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: one\n  labels: {app: web}\n"
    followed.write("a.yaml", f"{head}  annotations: {annotations}\n")
    followed.scan()
    assert followed.pods() == {"one": "web"}
    assert followed.problems() == {}
    assert bool(memory.documents) == stored

    followed.write("a.yaml", MALFORMED, age=5)
    followed.restart()
    followed.scan()

    assert followed.pods() == ({"one": "web"} if stored else {})


# ---- writing ---------------------------------------------------------------------------------


def test_store_is_written_only_when_good_documents_changed(followed: Followed, memory: Memory) -> None:
    """Not for looks, restarts, comments, or slips; once for everything that one look finds."""
    followed.write("a.yaml", pod("one"))
    followed.write("b.yaml", pod("two") + "---\n" + policy("p"))
    followed.scan()
    assert memory.saves == 1

    followed.scan()
    followed.write("a.yaml", "# a comment\n" + pod("one"), age=5)
    followed.scan()
    followed.write("a.yaml", MALFORMED, age=4)
    followed.scan()
    followed.write("b.yaml", pod("two") + "---\n" + policy("p", BAD_POLICY), age=4)
    followed.scan()
    followed.restart()
    followed.scan()
    assert memory.saves == 1

    followed.write("a.yaml", pod("one", app="new"), age=3)
    followed.scan()

    assert memory.saves == 2


def test_store_that_cannot_be_written_is_a_problem_and_harms_nothing(
    followed: Followed, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects are in force as written; it is tried again, and the problem goes when it works."""
    monkeypatch.setattr(paced, "RETRY", 0.0)
    memory.refusal = OSError(28, "No space left on device")
    followed.write("a.yaml", pod("one"))
    followed.scan()

    assert followed.pods() == {"one": "web"}
    problem = followed.problems()["State", "", "memory"]
    assert "No space left on device" in problem.message
    assert "a restart" in problem.message
    assert followed.source.status().error is None

    followed.write("a.yaml", pod("one", app="new"), age=5)
    followed.scan()
    assert followed.pods() == {"one": "new"}
    assert len(followed.problems()) == 1

    memory.refusal = None
    followed.scan()

    assert followed.problems() == {}
    assert '"new"' in memory.documents["a.yaml", ("Pod", "default", "one")]


def test_store_that_refuses_is_not_asked_all_the_time() -> None:
    """One warning for one reason, a pause between attempts."""
    clock = [100.0]

    class Refusing(Memory):
        attempts = 0

        def save(self, documents: Documents) -> None:
            self.attempts += 1
            super().save(documents)

    async def main() -> None:
        store = Refusing()
        store.refusal = OSError(30, "Read-only file system")
        keeper = Keeper(store, clock=lambda: clock[0])
        keeper.want({("a.yaml", POLICY_P): "1"})
        for _ in range(21):
            await keeper.write()
            clock[0] += paced.RETRY / 10
        assert store.attempts == 3
        assert keeper.error == "Read-only file system"
        await keeper.finish()

    with capture_logs() as logs:
        asyncio.run(main())

    assert [one["event"] for one in logs] == ["state.not_written"]


def test_slow_store_is_not_written_all_the_time() -> None:
    """After a write that took a second there is a pause of ten; what happens meanwhile is one write."""
    clock = [100.0]

    class Slow(Memory):
        def save(self, documents: Documents) -> None:
            super().save(documents)
            clock[0] += 1.0

    async def main() -> None:
        store = Slow()
        keeper = Keeper(store, clock=lambda: clock[0])
        for number in range(1, 10):
            keeper.want({("a.yaml", POLICY_P): str(number)})
            await keeper.write()
            clock[0] += 1.0
        assert store.saves == 1
        clock[0] += 2.0
        await keeper.write()
        assert store.saves == 2
        assert store.documents == {("a.yaml", POLICY_P): "9"}

        keeper.want({})
        await keeper.finish()
        assert store.documents == {}, "the end does not wait"

    asyncio.run(main())


def test_store_is_read_and_written_off_the_loop(
    followed: Followed, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the thread of the loop."""
    threads: list[threading.Thread] = []
    load, save = memory.load, memory.save
    monkeypatch.setattr(memory, "load", lambda: threads.append(threading.current_thread()) or load())
    monkeypatch.setattr(memory, "save", lambda new: threads.append(threading.current_thread()) or save(new))
    followed.write("a.yaml", pod("one"))
    followed.scan()

    assert len(threads) == 2
    assert threading.main_thread() not in threads


def test_cancelled_source_writes_what_it_last_read(
    followed: Followed, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that is told to end leaves nothing unwritten."""
    monkeypatch.setattr(paced, "REST", 1e9)

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110  a thread's effect is waited for
                await asyncio.sleep(0.01)

    async def main() -> None:
        source = DirectorySource(followed.path, followed.tables, interval=3600, settle=0.01, last_good=memory)
        followed.write("a.yaml", pod("one"))
        running = asyncio.create_task(source.run())
        await until(lambda: memory.saves == 1)
        followed.write("a.yaml", pod("one", app="new"), age=5)
        source.rescan()
        await until(lambda: followed.pods() == {"one": "new"})
        assert memory.saves == 1
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())

    assert memory.saves == 2
    assert '"new"' in next(iter(memory.documents.values()))
