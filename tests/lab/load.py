# SPDX-License-Identifier: Apache-2.0
"""
Everything that may go on at a node at once, for as long as a test likes, and what became of it.

Numbered packets of which some must arrive and some must not (``lab.traffic``); flows that ask and want an
answer (``lab.child.churn``): ever new ones, one that stays, and connections that were open before.
"""

from collections.abc import Sequence
from typing import Any, Final, Self

from lab.pod import Pod
from lab.probers import BEHIND_SERVICE, DENIED, DIRECT, STRANGE
from lab.traffic import Flood, Flow
from lab.world import World

OUT_THERE: Final = 9004
"""A UDP port far away."""
PACKETS_BETWEEN: Final = 1000


class Connections:
    """TCP connections from outside the control group, *count* to port 80 of each address."""

    def __init__(self, sender: Pod, addresses: Sequence[str], count: int) -> None:
        self._sender = sender
        wanted = [address for address in addresses for _ in range(count)]
        opened = [sender.outside.call("tcp_open", address=address, port=80) for address in wanted]
        assert [one["outcome"] for one in opened] == ["answered"] * len(opened)
        self.handles = [one["handle"] for one in opened]
        self.ports = {one["local"][1] for one in opened}

    def broken(self) -> list[str]:
        """What those say that do not answer any more."""
        replies = [self._sender.outside.call("tcp_say", handle=handle) for handle in self.handles]
        return [reply["outcome"] for reply in replies if reply["outcome"] != "answered"]


class Load:
    """
    A receiver, a sender and a stranger who is kept out; *vip* is the receiver's service.

    The receiver and somebody far away answer at 53/UDP, and *talking* is used all the time.  A context
    manager that stops everything.
    """

    def __init__(self, world: World, pods: tuple[Pod, Pod, Pod], vip: str, talking: Connections) -> None:
        receiver, sender, stranger = pods
        may = [
            Flow("pod to pod", receiver.address, DIRECT, DIRECT, rate=3000),
            Flow("through ClusterIP", vip, 9100, BEHIND_SERVICE, rate=3000),
            Flow("denied port", receiver.address, DENIED, DENIED, rate=1000),
        ]
        strange = Flow("stranger", receiver.address, STRANGE, STRANGE, rate=1000)
        out = Flow("masqueraded", world.far, OUT_THERE, OUT_THERE, rate=3000)
        self._floods = [
            Flood(sender.outside, receiver.outside, may),
            Flood(stranger.outside, receiver.outside, [strange]),
            Flood(sender.outside, world.actor, [out]),
        ]
        self._sender = sender.outside
        # One flow all the time, ever new flows, connections that were open: all ask and want answers.
        self._talks: list[tuple[str, str, dict[str, Any]]] = []
        for address in (vip, world.far):
            where = {"address": address, "port": 53}
            self._talks += [
                ("churn_start", f"new flows to {address}", {**where, "exchanges": 4, "every": 0.005}),
                ("dialogue_start", f"one flow to {address}", {**where, "every": 0.005}),
            ]
        self._running: list[str] = []
        self._talks.append(("talk_start", "connections", {"handles": talking.handles, "every": 0.005}))

    def __enter__(self) -> Self:
        for flood in self._floods:
            flood.start()
        for verb, name, arguments in self._talks:
            self._sender.call(verb, name=name, **arguments)
            self._running.append(name)
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._running:
            self._sender.call("talk_end", name=name)
        self._running.clear()
        for flood in self._floods:
            flood.close()

    def go_on(self) -> None:
        """Wait until more of everything was sent."""
        for flood in self._floods:
            flood.wait_sent(PACKETS_BETWEEN)

    def stop(self) -> dict[str, Any]:
        """Stop, and what became of it."""
        talks = {name: self._sender.call("talk_end", name=name) for name in self._running}
        self._running.clear()
        fates = {name: fate for flood in self._floods for name, fate in flood.stop().items()}
        may_not = ("denied port", "stranger")
        return {
            "packets": sum(fate.sent for fate in fates.values()),
            "lost": sum(fate.lost for name, fate in fates.items() if name not in may_not),
            "wrongly_allowed": sum(fates[name].received for name in may_not),
            "flows": sum(talk["flows"] for talk in talks.values()),
            "asked": sum(talk["asked"] for talk in talks.values()),
            "unanswered": sum(talk["asked"] - talk["answered"] for talk in talks.values()),
            "told": [*map(str, fates.values()), *(f"{name}: {talk}" for name, talk in talks.items())],
        }
