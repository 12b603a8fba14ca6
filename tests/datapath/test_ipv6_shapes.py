# SPDX-License-Identifier: Apache-2.0
"""
K5, K6 and K7 for IPv6: any frame at all through the programs of a node whose pods speak both families.

Verdict, reason and every byte are those of reference/forwarding6.py.  Beside that, and without it, each
script of fragments is asked whether a later one went on that had no first before it, and each chain of
extension headers whether its transport was read where it is.
"""

from __future__ import annotations

import itertools
import random

import pytest

from ciliumd.abi import EventType
from ciliumd.model.net import mac_bytes
from datapath.contest import Contest
from datapath.harness import REDIRECT, Datapath
from datapath.malformed import cut, mutated, replaced
from datapath.malformed6 import (
    AH,
    DEEPEST,
    DESTINATION,
    EXTENSIONS,
    HOP_BY_HOP,
    ROUTING,
    chained,
    fragments,
    frames,
    lying,
    packet,
    transport,
)
from datapath.openworld6 import SIX_ONE, WAYS6, macs_of6
from datapath.tally import Tally
from fixtures.packets import sctp, tcp, udp
from fixtures.packets6 import ping, pod_one, pod_two

pytestmark = pytest.mark.datapath

SEED = 20261129
MUTATIONS, MUTATIONS_LONG = 2_000, 500_000  # a hook
WAYS_TRIED = 3  # of a hook; --long: all of them
SPOILED = 4  # frames of a hook that are cut, lie, or have each byte replaced; --long: all of them
ALL_UP_TO, DEEPEST_CHAIN, CHAINS, CHAINS_LONG = 3, 12, 500, 20_000
ORDERS = 40
NOT_FOUND, BAD_EXTENSION, UNKNOWN_PROTOCOL, TOO_MANY = 175, 156, 137, 8
HOOKS = list(WAYS6)
BODY = bytes(range(64))


def _tables(hook: str) -> list[dict[str, bytes]]:
    return [frames(*macs_of6(hook, one, two), one.ip, two.ip) for one, two in WAYS6[hook]]


@pytest.mark.parametrize("hook", HOOKS)
def test_every_shape_of_the_table(hook: str, contest6: Contest, tally: Tally, is_long: bool) -> None:
    """In their order, so that first fragments are known; then cut and lying ones."""
    tables = _tables(hook)
    for table in tables if is_long else tables[:WAYS_TRIED]:
        contest6.play(table.values())
    dice = random.Random(f"{SEED} {hook}")
    stock = list(tables[0].values())
    for frame in stock if is_long else dice.sample(stock, SPOILED):
        contest6.play(cut(frame))
        contest6.play(lying(frame))
    assert min(map(len, tables)) > 400
    contest6.tell(tally, f"K5 {hook}, IPv6 shapes", shapes=len(tables[0]), ways=len(tables))


@pytest.mark.parametrize("hook", HOOKS)
def test_frames_changed_at_random(hook: str, contest6: Contest, tally: Tally, is_long: bool) -> None:
    """Any header byte replaced, and up to four random changes at once."""
    dice = random.Random(f"{SEED} {hook} random")
    stock = [frame for table in _tables(hook) for frame in table.values()]
    contest6.play(
        changed
        for frame in dice.sample(stock, 60 if is_long else SPOILED)
        for changed in replaced(frame, dice, deepest=DEEPEST)
    )
    for _ in range(0, MUTATIONS_LONG if is_long else MUTATIONS, 1000):
        contest6.play(mutated(dice.choice(stock), dice, deepest=DEEPEST) for _ in range(1000))
    contest6.tell(tally, f"K5 {hook}, IPv6 mutations", seed=SEED)


@pytest.mark.parametrize("hook", HOOKS)
def test_extension_headers_in_every_order(hook: str, contest6: Contest, tally: Tally, is_long: bool) -> None:
    """Every order of up to three, then some of up to twelve: one outcome with the reference, for each."""
    dice = random.Random(f"{SEED} {hook} chains")
    one, two = WAYS6[hook][0]
    smac, dmac = macs_of6(hook, one, two)
    macs = mac_bytes(dmac) + mac_bytes(smac) + b"\x86\xdd"
    chains = [
        chain for depth in range(ALL_UP_TO + 1) for chain in itertools.product(EXTENSIONS, repeat=depth)
    ]
    chains += [
        tuple(dice.choices(EXTENSIONS, k=dice.randint(ALL_UP_TO + 1, DEEPEST_CHAIN)))
        for _ in range(CHAINS_LONG if is_long else CHAINS)
    ]
    made = [macs + chained(one.ip, two.ip, chain, dice) for chain in chains]
    made += [frame[: dice.randrange(54, len(frame))] for frame in made[:500]]
    contest6.play(made)
    if hook in {"from_container", "to_container", "from_host"}:
        assert contest6.went_on > 50
        assert contest6.outcomes[f"2/{BAD_EXTENSION}"]
        assert contest6.outcomes[f"2/{UNKNOWN_PROTOCOL}"]
    contest6.tell(tally, f"K7 {hook}, IPv6", deepest=DEEPEST_CHAIN, seed=SEED)


@pytest.mark.parametrize("depth", range(TOO_MANY + 2))
def test_transport_is_read_where_it_is(two_sixes: Datapath, depth: int) -> None:
    """Behind any headers that are read over, ports are the transport's; one header more is refused."""
    dice = random.Random(depth)
    for _ in range(8):
        chain = tuple(dice.choices((HOP_BY_HOP, AH, DESTINATION), k=depth))
        protocol, body = transport(udp(40001, 53), pod_one.ip, pod_two.ip)
        parts, following = b"", protocol
        for kind in reversed(chain):
            size = dice.randrange(3)
            # What a wrong offset would read: ports that are not asked for.
            length = 2 + 2 * size if kind == AH else size
            whole = 8 * size + (16 if kind == AH else 8)
            parts = bytes([following, length]) + b"\x11" * (whole - 2) + parts
            following = kind
        sent = packet(pod_one.ip, pod_two.ip, following, parts + body)
        frame = mac_bytes(pod_one.node_mac) + mac_bytes(pod_one.mac) + b"\x86\xdd" + sent
        two_sixes.age(100)
        result = two_sixes.send(SIX_ONE, frame)
        if depth > TOO_MANY:
            assert result.drop.reason == BAD_EXTENSION
            continue
        (told,) = result.of_type(EventType.EVENT_TRACE)
        assert (told.protocol, told.sport, told.dport) == (17, 40001, 53)


def test_routing_header_that_is_not_done_is_refused(two_sixes: Datapath) -> None:
    """Who gets such a packet is not whom policy was asked about."""
    protocol, body = transport(udp(40001, 53), pod_one.ip, pod_two.ip)
    for left, reason in ((0, 0), (1, BAD_EXTENSION), (255, BAD_EXTENSION)):
        route = bytes([protocol, 2, 4, left]) + bytes(20)
        sent = packet(pod_one.ip, pod_two.ip, ROUTING, route + body)
        frame = mac_bytes(pod_one.node_mac) + mac_bytes(pod_one.mac) + b"\x86\xdd" + sent
        result = two_sixes.send(SIX_ONE, frame)
        assert (result.drop.reason if reason else result.action) == (reason or REDIRECT)


@pytest.mark.parametrize(
    "layer", [udp(40001, 53, BODY), tcp(40001, 80, "A", BODY), sctp(1, 2, BODY), ping(5, BODY)]
)
def test_fragments_in_every_order(layer: object, contests6: dict[str, Contest], tally: Tally) -> None:
    """First, later, one of another datagram, and the first once more: none goes on before its first one."""
    contest = contests6["from_container"]
    contest.outcomes.clear()
    macs = mac_bytes(pod_one.node_mac) + mac_bytes(pod_one.mac) + b"\x86\xdd"
    first, later = fragments(pod_one.ip, pod_two.ip, layer, 700)
    other = fragments(pod_one.ip, pod_two.ip, layer, 701)
    pieces = [macs + piece for piece in (first, later, *other, first, later)]
    dice = random.Random(SEED)
    orphans = 0
    for order in dice.sample(list(itertools.permutations(pieces)), ORDERS):
        contest.forget()
        known: set[bytes] = set()
        seen = contest.batch(list(order))
        assert contest.wrong == [], contest.wrong[0]
        for frame, one in zip(order, seen, strict=True):
            number, is_later = frame[58:62], frame[56:58] != b"\0\1"
            if is_later:
                orphans += one.verdict.action == REDIRECT and number not in known
            else:
                known.add(number)
    assert contest.outcomes[f"2/{NOT_FOUND}"]
    assert contest.went_on
    tally(
        "K6 from_container, IPv6",
        injected=contest.outcomes.total(),
        delivered=contest.went_on,
        wrong=orphans,
        orders=ORDERS,
        seed=SEED,
    )
    assert orphans == 0
