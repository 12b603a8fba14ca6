# SPDX-License-Identifier: Apache-2.0
"""
One hook against reference/forwarding.py: what it returns, why it drops, and every byte it leaves behind.

The node's policies allow everything, so that packets go as far as they can.  Frames run in batches over
maps that were empty before the first of them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from ciliumd.abi import Event, EventType, Hook
from ciliumd.bpf import Object, TestRun
from datapath.compiled import compiled
from datapath.harness import HOOKS, QUIET, Datapath
from datapath.malformed import runnable
from datapath.openworld import CLOSED, NODE, OPTIONS, fill, tunnel_node_of
from datapath.rows import POD_ONE, u32
from datapath.tally import Tally
from datapath.tunnel import AWAY, fill_cluster, node_two
from fixtures.packets import diff
from reference.forwarding import Forwarding
from reference.forwarding6 import Forwarding6
from reference.node import Node, Verdict

BATCH = 1000
# struct ct_key's kind, struct ct_entry's flags; of struct event what is compared.
CT_KIND_AT, CT_FLAGS_AT = 37, 26
TYPE_AT, REASON_AT, HOOK_AT, LINE_AT, FILE_AT = 8, 9, 10, 14, 92


@dataclass(frozen=True, slots=True)
class Seen:
    """What a program did with one frame; *line* and *file* say which of its drops it was."""

    verdict: Verdict
    hook: int
    file: int
    line: int


# Of conntrack which kinds and flags there are, of masquerading and fragments how many.
Rows = tuple[frozenset[tuple[int, int]], int, int]
Run = Callable[[bytes], TestRun]
Judge = Callable[[bytes, bytes], Verdict]


class Contest:
    """Frames through one hook, each compared."""

    def __init__(self, datapath: Datapath, hook: str, run: Run, reference: Forwarding | Forwarding6) -> None:
        self.hook = hook
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._datapath = datapath
        self._run = run
        self._reference = reference
        self._judge: Judge = getattr(reference, hook)
        self._flows = [datapath.map(name) for name in ("ct", "snat", "frags")]

    def forget(self) -> Rows:
        """Both sides start afresh; what the last frames had left in the maps of flows."""
        self._reference.forget()
        left = []
        for rows in self._flows:
            found = dict(rows.items())
            rows.delete_batch(list(found))
            left.append(found)
        flags = {(key[CT_KIND_AT], value[CT_FLAGS_AT]) for key, value in left[0].items()}
        return frozenset(flags), len(left[1]), len(left[2])

    @property
    def went_on(self) -> int:
        """Frames that were not dropped; one that was answered was."""
        return self.outcomes["-1/0"] + self.outcomes["7/0"]

    def tell(self, tally: Tally, what: str, **more: int) -> None:
        """Record what became of the frames; none may differ from the reference."""
        tally(
            what,
            injected=self.outcomes.total(),
            delivered=self.went_on,
            wrong=len(self.wrong),
            outcomes=dict(sorted(self.outcomes.items())),
            **more,
        )
        assert self.wrong == [], self.wrong[0]

    def play(self, frames: Iterable[bytes]) -> list[Seen]:
        """These frames in order, in batches that know nothing of each other."""
        todo = [frame for frame in frames if runnable(frame)]
        seen: list[Seen] = []
        for start in range(0, len(todo), BATCH):
            self.forget()
            seen += self.batch(todo[start : start + BATCH])
        return seen

    def batch(self, frames: list[bytes]) -> list[Seen]:
        """
        At most BATCH frames over what those before them left behind.

        What differs from the reference is kept in *wrong*; the rest of its batch is not looked at.
        """
        while self._datapath.ring.drain():
            pass
        runs = [self._run(frame) for frame in frames]
        drops = self._drops()
        found: list[Seen] = []
        for frame, run in zip(frames, runs, strict=True):
            expected = self._judge(frame, run.data)
            # A drop is told, and a packet that is answered was dropped; nobody else is.
            drop = next(drops, None) if expected.reason else None
            reason, hook, file, line = drop or (0, 0, 0, 0)
            verdict = Verdict(run.retval, reason, run.data)
            if expected != verdict:
                self.wrong.append(explained(self.hook, frame, expected, verdict))
                return found
            self.outcomes[f"{run.retval}/{reason}"] += 1
            found.append(Seen(verdict, hook, file, line))
        if next(drops, None) is not None:
            self.wrong.append(f"{self.hook}: more drops were told of than there are")
        return found

    def _drops(self) -> Iterator[tuple[int, int, int, int]]:
        told = []
        while data := self._datapath.ring.drain():
            for at in range(0, len(data), Event.SIZE):
                if data[at + TYPE_AT] == EventType.EVENT_DROP:
                    line = int.from_bytes(data[at + LINE_AT : at + LINE_AT + 2], "little")
                    told.append((data[at + REASON_AT], data[at + HOOK_AT], data[at + FILE_AT], line))
        return iter(told)


def explained(hook: str, frame: bytes, expected: Verdict, seen: Verdict) -> str:
    """All that is needed to run it again."""
    told = [f"{hook} of {frame.hex()}"]
    for name, verdict in (("expected", expected), ("seen", seen)):
        told.append(f"{name}: returns {verdict.action}, reason {verdict.reason}, {verdict.frame.hex()}")
    if expected.frame != seen.frame:
        told.append(diff(expected.frame, seen.frame))
    return "\n".join(told)


DEVICES = {
    "from_container": POD_ONE.device,
    "to_container": POD_ONE.device,
    "from_host": "cilium_net",
    "from_netdev": "net0",
    "to_netdev": "net0",
}


def contests(
    datapath: Datapath, node: Node, judge: Callable[[], Forwarding | Forwarding6] | None = None
) -> dict[str, Contest]:
    """Every hook that a test run can enter without a tunnel key; *judge* makes a reference of its own."""
    made = {}
    for hook, device in DEVICES.items():
        entry = datapath.generation.entries[HOOKS[hook]]
        run = partial(entry.test_run, ifindex=socket.if_nametoindex(device))
        made[hook] = Contest(datapath, hook, run, judge() if judge else Forwarding(node))
    return made


class Brought:
    """The program of from_overlay behind one that gives the packet a tunnel key; a context manager."""

    def __init__(self, datapath: Datapath, scratch: Path) -> None:
        with Object(compiled("tunnel_brings", scratch), files=scratch) as helper:
            helper.load()
            self._program = helper.program("tunnel_brings")
            self._under_test = helper.map("cilium_hooks_v1")
        self._under_test.update(
            u32(Hook.HOOK_FROM_OVERLAY), u32(datapath.generation.programs["hook_from_overlay"].fd)
        )

    def contest(self, datapath: Datapath, outer: str, identity: int) -> Contest:
        """What the node at *outer* brings as *identity*'s."""
        cb = (int(ip_address(outer)), identity)
        run = partial(self._program.test_run, ifindex=socket.if_nametoindex("cilium_net"), cb=cb)
        return Contest(datapath, "from_overlay", run, Forwarding(tunnel_node_of(outer, identity)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._program.close()
        self._under_test.close()


@contextlib.contextmanager
def all_contests() -> Iterator[dict[str, Contest]]:
    """Every hook; this thread is on the tests' node already, and may load programs."""
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"contest-{os.getpid()}-")))
        plain = stack.enter_context(Datapath.loaded(scratch, silent=QUIET, node_port=1, **OPTIONS))
        plain.reset()
        fill(plain)
        made = contests(plain, NODE)
        shut = stack.enter_context(Datapath.loaded(scratch, silent=QUIET, node_port=1, **OPTIONS))
        shut.reset()
        fill(shut, closed=True)
        for hook, contest in contests(shut, CLOSED).items():
            # Where packets leave the node no policy is asked.
            if hook != "to_netdev":
                made[f"{hook}, closed"] = contest
        overlay = {"tunnel": 1, "node_port": 1, "overlay_ifindex": socket.if_nametoindex("cilium_net")}
        tunnel = stack.enter_context(Datapath.loaded(scratch, silent=QUIET, **OPTIONS, **overlay))
        tunnel.reset()
        fill_cluster(tunnel)
        node = tunnel_node_of(node_two.ip, AWAY)
        made |= {f"{hook}, tunnel": contest for hook, contest in contests(tunnel, node).items()}
        # A test run has no tunnel key of its own.
        brought = stack.enter_context(Brought(tunnel, scratch))
        made["from_overlay"] = brought.contest(tunnel, node_two.ip, AWAY)
        made["to_overlay"] = Contest(
            tunnel, "to_overlay", tunnel.generation.entries[HOOKS["to_overlay"]].test_run, Forwarding(node)
        )
        yield made
