# SPDX-License-Identifier: Apache-2.0
"""
F12: the state directory is full or read-only, its files are cut or hold flipped bits.

What is in force stays in force and changes go on; a file that is not whole is ignored as a whole.
"""

import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ciliumd.statefile import StateFileDamaged, read_rows
from lab import manifests
from lab.figures import Figures
from lab.maps import dump
from lab.meaning import meaning
from lab.node import Node
from lab.probers import Probers
from lab.process import run
from lab.waiting import eventually
from lab.world import World

SIZE = "512k"
FLIPS = 500
CUTS, CUTS_LONG = 2, 30
SEED = 12
OTHER_VIP = "10.96.0.50"
FILES = ("identities.json", "endpoints.json", "last-good.json")


@pytest.fixture(scope="module")
def node(world: World) -> Iterator[Node]:
    """A node whose state directory is a small file system of its own."""
    with Node(world) as node:
        state = node.directory / "state"
        state.mkdir()
        run(["/bin/mount", "-t", "tmpfs", "-o", f"size={SIZE}", "faults", state])
        try:
            yield node.start()
        finally:
            node.agent.end()
            run(["/bin/umount", "--lazy", state], check=False)


@contextmanager
def full(node: Node) -> Iterator[None]:
    """No byte fits into the state directory."""
    junk = node.directory / "state" / "junk"
    with junk.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    try:
        yield
    finally:
        junk.unlink()


@contextmanager
def read_only(node: Node) -> Iterator[None]:
    """Nothing can be written to the state directory."""
    state = node.directory / "state"
    run(["/bin/mount", "-o", "remount,bind,ro", state])
    try:
        yield
    finally:
        run(["/bin/mount", "-o", "remount,bind,rw", state])


@pytest.mark.parametrize("trouble", [full, read_only])
def test_a_directory_that_takes_nothing(
    node: Node,
    probers: Probers,
    trouble: Callable[[Node], "contextmanager[None]"],
    record_property: Callable[[str, object], None],
) -> None:
    """The agent starts, does what is asked, says what it cannot keep, and keeps it once it can."""
    figures = Figures(f"F12-state directory {trouble.__name__.replace('_', ' ')}", injected=1)
    before = meaning(dump(node.bpf_root))
    with probers:
        # The lock is open for writing: only with the agent gone does a file system become read-only.
        node.agent.stop(signal.SIGKILL)
        with trouble(node):
            node.agent.start()
            assert meaning(dump(node.bpf_root)).differences(before) == []
            # A service and a policy need no file; a pod of new labels would like one.
            node.apply(
                "other", manifests.service("other", OTHER_VIP, {"app": "receiver"}, ports=[("TCP", 80, 80)])
            )
            node.wait_service(f"{OTHER_VIP}:80", 1)
            assert probers.sender.reaches(OTHER_VIP, 80)
            node.apply("pod-default-late", manifests.pod("late", {"app": "sender", "tier": trouble.__name__}))
            node.apply(
                "pod-default-sender", manifests.pod("sender", {"app": "sender", "tier": trouble.__name__})
            )
            eventually(lambda: "identities.json" in node.agent.status_or_error(), "status names the file")
            eventually(lambda: probers.sender.reaches(OTHER_VIP, 80), "the pod is what its new labels say")
        eventually(node.agent.healthy, "all is kept", seconds=45.0)
        rows = meaning(dump(node.bpf_root))
        node.agent.restart()
        assert meaning(dump(node.bpf_root)).differences(rows) == []
        for name in ("other", "pod-default-late"):
            node.delete(name)
        node.apply("pod-default-sender", manifests.pod("sender", {"app": "sender"}))
        eventually(lambda: OTHER_VIP not in str(meaning(dump(node.bpf_root)).services), "the service is gone")
        figures.survived = 1
        probers.stop(figures)
    figures.record(record_property)

    figures.assert_harmless()


def test_no_cut_and_no_flip_is_believed(
    node: Node, is_long: bool, record_property: Callable[[str, object], None]
) -> None:
    """
    Prefixes of every real state file, and flipped bits anywhere in it, are refused as a whole.

    Every prefix with ``--long``; the unit tests cut a smaller file at every offset.
    """
    figures = Figures("F12-state files cut at every offset, and bits flipped")
    chance = random.Random(SEED)
    state = node.directory / "state"
    copy = node.directory / "copy.json"
    files = [path for path in sorted(state.glob("*.json")) if path.name in FILES]
    for path in files:
        data = path.read_bytes()
        flipped = []
        for _ in range(FLIPS if is_long else FLIPS // 10):
            changed = bytearray(data)
            changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            flipped.append(bytes(changed))
        cuts = range(0, len(data), 1 if is_long else 29)
        for damaged in [*(data[:length] for length in cuts), *flipped]:
            copy.write_bytes(damaged)
            figures.injected += 1
            figures.survived += refused_or_same(copy, path)
    figures.record(record_property)

    assert len(files) >= 2
    assert figures.survived == figures.injected


def refused_or_same(copy: Path, path: Path) -> bool:
    """Whether a damaged file is refused, or says exactly what the whole one says (white space changed)."""
    try:
        return read_rows(copy) == read_rows(path)
    except StateFileDamaged:
        return True


def damage(data: bytes, number: int, chance: random.Random) -> bytes:
    """Cut a file, or flip a bit in what it says, in turn."""
    at = chance.randrange(1, len(data) - 1)
    if number % 2:
        return data[:at]
    while data[at : at + 1].isspace():
        at += 1
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


@pytest.mark.parametrize("name", FILES)
def test_a_start_with_a_damaged_file_loses_nothing(
    node: Node, probers: Probers, is_long: bool, name: str, record_property: Callable[[str, object], None]
) -> None:
    """
    Cut somewhere, or with a bit flipped: the agent names it and starts, and packets notice nothing.

    No number changes either: label sets are in a second file, the others in maps and devices.
    """
    figures = Figures(f"F12-start with {name} damaged")
    chance = random.Random(f"{SEED} {name}")
    path = node.directory / "state" / name
    eventually(path.exists, f"there is {name}")
    before = meaning(dump(node.bpf_root))
    with probers:
        for number in range(CUTS_LONG if is_long else CUTS):
            node.agent.stop(signal.SIGKILL)
            mark = len(node.agent.log_text())
            path.write_bytes(damage(path.read_bytes(), number, chance))
            figures.injected += 1
            node.agent.start()
            assert name in node.agent.log_text()[mark:]
            after = meaning(dump(node.bpf_root))
            is_same = after.services == before.services and after.identities == before.identities
            figures.survived += is_same and not after.broken
            eventually(lambda: probers.sender.reaches(probers.receiver.address, 80), "who may gets in")
            assert not probers.stranger.reaches(probers.receiver.address, 80)
        probers.stop(figures)
    figures.record(record_property)

    figures.assert_harmless()


def test_a_start_without_any_numbers_of_label_sets_lets_nobody_in(
    node: Node, probers: Probers, record_property: Callable[[str, object], None]
) -> None:
    """
    Both files of label sets are damaged: pods get new numbers.

    Packets that still carry an old one meet policies that know only the new: they are dropped for a moment.
    """
    figures = Figures("F12-start with identities.json and its copy damaged", injected=1)
    with probers:
        node.agent.stop(signal.SIGKILL)
        mark = len(node.agent.log_text())
        for name in ("identities.json", "identities.json.copy"):
            path = node.directory / "state" / name
            path.write_bytes(path.read_bytes()[:40])
        node.agent.start()
        assert "recovery.identity_lost" in node.agent.log_text()[mark:]
        eventually(lambda: probers.sender.reaches(probers.receiver.address, 80), "who may gets in")
        assert not probers.stranger.reaches(probers.receiver.address, 80)
        figures.survived = 1
        probers.stop(figures)
    figures.record(record_property)

    assert figures.wrongly_allowed == 0, figures
