# SPDX-License-Identifier: Apache-2.0
"""
K6: fragments in every order: first, middle, last, overlapping, a first that is too small, a second datagram.

Bytes and reasons are the reference's; beside that, and without it, each script is asked whether a later
fragment went on that had no first before it.
"""

from __future__ import annotations

import itertools
import random
from functools import partial

import pytest
from scapy.packet import Packet

from ciliumd.abi import DropReason
from datapath.contest import Contest, Seen
from datapath.harness import DROP, PASS, REDIRECT, Datapath
from datapath.openworld import DNS
from datapath.rows import ALLOW, ALLOW_ALL, DENY, EGRESS, INGRESS, POD_ONE, POD_TWO, Rule
from datapath.tally import Tally
from datapath.ways import macs_of
from fixtures.packets import (
    IP,
    Ether,
    Place,
    Raw,
    from_pod,
    node_one,
    ping,
    pod_away,
    pod_one,
    pod_two,
    sctp,
    svc_one,
    tcp,
    udp,
    wire,
    world_one,
)

pytestmark = pytest.mark.datapath

SEED = 6
ORDERS, ORDERS_LONG = 40, 10_000  # of the 5,040 of each datagram; --long: all
IN_FLIGHT = (2_000, 8_000)
LATER = 0x1FFF
NOT_FOUND, BAD_HEADER = 175, 135
FORGOTTEN = (DropReason.DROP_FRAG_NOT_FOUND, EGRESS)
DENIED_THERE = (DropReason.DROP_POLICY_DENY, INGRESS)
DENIED = Rule(INGRESS, DENY, 17, 54)
TOO_SMALL = 8  # bytes: what RFC 1858 calls tiny

# Where fragments matter: a hook, the two who talk, and the port that is asked.
WAYS: tuple[tuple[str, Place, Place, int], ...] = (
    ("from_container", pod_one, pod_two, 53),
    ("from_container", pod_one, svc_one, 53),
    ("from_container", pod_one, world_one, 53),
    ("to_container", node_one, pod_one, 53),
    ("from_host", node_one, pod_one, 53),
    ("from_netdev", world_one, pod_one, 53),
    ("from_netdev", world_one, node_one, DNS),
    ("to_netdev", pod_one, world_one, 53),
    ("from_overlay", pod_away, pod_one, 53),
)
BODY = bytes(range(64))


def _layer(protocol: str, port: int) -> Packet:
    return {
        "udp": udp(40001, port, BODY),
        "tcp": tcp(40001, port, "A", BODY),
        "sctp": sctp(40001, port, BODY),
        "echo": ping(40001, BODY),
    }[protocol]


def pieces(hook: str, source: Place, target: Place, layer: Packet, identifier: int) -> dict[str, bytes]:
    """One datagram as whole, as its fragments, and as those an attacker would add."""
    smac, dmac = macs_of(hook, source, target)
    ip = {"src": source.ip, "dst": target.ip, "id": identifier}
    whole = wire(Ether(src=smac, dst=dmac) / IP(**ip) / layer.copy())
    l4, protocol = whole[34:], whole[23]

    def piece(start: int, end: int, *, more: bool) -> bytes:
        fields = ip | {"frag": start // 8, "flags": "MF" if more else 0, "proto": protocol}
        return wire(Ether(src=smac, dst=dmac) / IP(**fields) / Raw(l4[start:end]))

    return {
        "first": piece(0, 24, more=True),
        "middle": piece(24, 48, more=True),
        "last": piece(48, len(l4), more=False),
        "overlapping": piece(8, 40, more=True),
        "first, too small": piece(0, TOO_SMALL, more=True),
        "first once more": piece(0, 32, more=True),
    }


def _orphans(hook: str, frames: list[bytes], seen: list[Seen]) -> int:
    """
    Later fragments that went on although no first of their datagram had been understood before.

    What passes at a native device is the node's own, whose stack puts fragments together itself.
    """
    known: set[bytes] = set()
    orphans = 0
    for frame, one in zip(frames, seen, strict=True):
        datagram = frame[26:34] + frame[18:20] + frame[23:24]
        if int.from_bytes(frame[20:22], "big") & LATER:
            went = one.verdict.action == REDIRECT or (one.verdict.action == PASS and hook != "from_netdev")
            orphans += went and datagram not in known
        elif one.verdict.reason not in {NOT_FOUND, BAD_HEADER}:
            known.add(datagram)
    return orphans


@pytest.mark.parametrize(
    ("hook", "source", "target", "port"), WAYS, ids=lambda value: getattr(value, "ip", None)
)
def test_fragments_in_every_order(
    hook: str, source: Place, target: Place, port: int, contest: Contest, tally: Tally, is_long: bool
) -> None:
    """Six pieces of a datagram and one of another with the same number, for each protocol."""
    dice = random.Random(f"{SEED} {hook} {target.ip}")
    orphans = scripts = 0
    for protocol in ("udp", "tcp", "sctp", "echo"):
        of_one = pieces(hook, source, target, _layer(protocol, port), 700)
        other = "tcp" if protocol == "udp" else "udp"
        stranger = pieces(hook, source, target, _layer(other, port), 700)["middle"]
        orders = list(itertools.permutations([*of_one.values(), stranger]))
        for order in orders if is_long else dice.sample(orders, ORDERS):
            frames = list(order)
            contest.forget()
            seen = contest.batch(frames)
            assert contest.wrong == [], contest.wrong[0]
            orphans += _orphans(hook, frames, seen)
            scripts += 1

    tally(
        f"K6 {hook} to {target.ip}",
        injected=contest.outcomes.total(),
        delivered=contest.went_on,
        wrong=orphans,
        orders=scripts,
        seed=SEED,
    )
    assert orphans == 0
    # Something went on, and something was refused for having no first one.
    assert contest.outcomes[f"{DROP}/{NOT_FOUND}"] + contest.outcomes["-1/0"]
    assert contest.went_on


@pytest.mark.parametrize("count", IN_FLIGHT)
def test_many_datagrams_in_flight(datapath: Datapath, tally: Tally, count: int) -> None:
    """
    Every other one asks a port that is denied; all first fragments come, then all later ones, in any order.

    A later one shares the verdict of its first, or is refused when there was no room to remember that.
    """
    datapath.add_endpoint(POD_ONE, *ALLOW_ALL)
    datapath.add_endpoint(POD_TWO, Rule(EGRESS, ALLOW), Rule(INGRESS, ALLOW), DENIED)
    run = partial(datapath.generation.entries["entry_from_container"].test_run, ifindex=POD_ONE.ifindex)
    made = {port: pieces("from_container", pod_one, pod_two, udp(40001, port, BODY), 0) for port in (53, 54)}
    dice = random.Random(SEED)
    numbers = list(range(count))

    def numbered(frame: bytes, number: int) -> bytes:
        return frame[:18] + number.to_bytes(2, "big") + frame[20:]

    def passed(kind: str, number: int) -> bool:
        datapath.ring.drain()
        return run(numbered(made[53 + number % 2][kind], number)).retval == REDIRECT

    firsts = {number: passed("first", number) for number in numbers}
    assert [number for number, went in firsts.items() if went] == numbers[::2]
    dice.shuffle(numbers)
    before = datapath.counts()
    laters = {number: passed("last", number) for number in numbers}
    after = datapath.counts()

    wrong = sum(went and not firsts[number] for number, went in laters.items())
    forgotten = after.get(FORGOTTEN, 0) - before.get(FORGOTTEN, 0)
    denied = after[DENIED_THERE] - before[DENIED_THERE]
    went_on = sum(laters.values())
    tally(
        f"K6 {count} datagrams in flight",
        injected=2 * count,
        delivered=sum(firsts.values()) + went_on,
        wrong=wrong,
        forgotten=forgotten,
    )
    assert wrong == 0
    assert went_on + forgotten + denied == count
    if count == IN_FLIGHT[0]:
        assert (forgotten, denied) == (0, count // 2)


def test_a_first_fragment_of_another_says_nothing(two_pods: Datapath) -> None:
    """One number, two senders, two receivers, two protocols: only what is all the same is one datagram."""
    layer, number = udp(40001, 53, BODY), 9
    mine = pieces("from_container", pod_one, pod_two, layer, number)
    assert two_pods.send(POD_ONE, mine["first"]).action == REDIRECT
    for other in (
        pieces("from_container", pod_one, pod_two, layer, number + 1),
        pieces("from_container", pod_one, node_one, layer, number),
        pieces("from_container", pod_one, pod_two, tcp(40001, 53, "A", BODY), number),
    ):
        assert two_pods.send(POD_ONE, other["last"]).drop.reason == NOT_FOUND
    theirs = from_pod(pod_two, pod_one.ip, Raw(BODY[:16]), id=number, frag=3, proto=17)
    assert two_pods.send(POD_TWO, theirs).drop.reason == NOT_FOUND
    assert two_pods.send(POD_ONE, mine["last"]).action == REDIRECT
