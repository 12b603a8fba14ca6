# SPDX-License-Identifier: Apache-2.0
"""
K7: IPv6 with extension headers in every order, up to twelve deep, at every hook.

On a node whose pods have no IPv6 (of others: test_ipv6_shapes.py) no program parses it: it is refused by
name where pods are concerned, inside the tunnel too, and passes where the node's own traffic does.  No byte
of it is read as if it were IPv4's: in every frame the places of IPv4's fields hold what would be a packet
between pods.  Extension headers behind IPv4 are no transport.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest

from datapath.contest import Contest
from datapath.tally import Tally
from datapath.ways import WAYS, macs_of
from fixtures.packets import IP, Ether, pod_one, pod_two, udp, wire

pytestmark = pytest.mark.datapath

SEED = 7
ALL_UP_TO, DEEPEST = 3, 12
RANDOM, RANDOM_LONG = 500, 20_000
HOP_BY_HOP, ROUTING, FRAGMENT, ESP, AH, NO_NEXT, DESTINATION, MOBILITY = 0, 43, 44, 50, 51, 59, 60, 135
EXTENSIONS = (HOP_BY_HOP, ROUTING, FRAGMENT, ESP, AH, NO_NEXT, DESTINATION, MOBILITY)
TRANSPORTS = (6, 17, 58, 132)
REFUSED, SILENT, PASSED = "2/139", "2/0", "-1/0"
# Who refuses by name, who drops what nobody asks about, and who lets pass.
EXPECTED = {
    "from_container": REFUSED,
    "to_container": REFUSED,
    "from_host": PASSED,
    "from_netdev": PASSED,
    "to_netdev": PASSED,
    "from_overlay": REFUSED,
    "to_overlay": SILENT,
}


def _extension(kind: int, following: int, dice: random.Random) -> bytes:
    """RFC 8200: next header, length in units of 8 bytes beyond the first; AH counts in words, less two."""
    if kind == FRAGMENT:
        return (
            bytes([following, 0])
            + dice.choice((b"\0\0", b"\0\1", b"\0\x08", b"\xff\xf8"))
            + dice.randbytes(4)
        )
    if kind == ESP:
        return dice.randbytes(8)
    size = dice.randrange(3)
    if kind == AH:
        return bytes([following, 4 + 2 * size - 2]) + dice.randbytes(14 + 8 * size)
    return bytes([following, size]) + dice.randbytes(6 + 8 * size)


def ipv6(macs: bytes, chain: tuple[int, ...], transport: int, dice: random.Random) -> bytes:
    """A frame with these headers in this order, and pods' addresses where IPv4 would have them."""
    following = [*chain[1:], transport]
    body = b"".join(_extension(kind, after, dice) for kind, after in zip(chain, following, strict=True))
    body += (40001).to_bytes(2, "big") + (53).to_bytes(2, "big") + dice.randbytes(16)
    # The source's bytes 4 to 11 lie where IPv4 has its addresses.
    source = b"\xfe\x80\0\0" + pod_one.address.packed + pod_two.address.packed + bytes(4)
    head = b"\x60\0\0\0" + len(body).to_bytes(2, "big") + bytes([chain[0], 64])
    return macs + b"\x86\xdd" + head + source + bytes(16) + body


def chains(dice: random.Random, count: int) -> Iterator[tuple[int, ...]]:
    """Every order of a few, then some of the many deeper ones."""
    for depth in range(1, ALL_UP_TO + 1):
        yield from itertools.product(EXTENSIONS, repeat=depth)
    for _ in range(count):
        yield tuple(dice.choices(EXTENSIONS, k=dice.randint(ALL_UP_TO + 1, DEEPEST)))


@pytest.mark.parametrize("hook", WAYS)
def test_extension_headers_in_every_order(hook: str, contest: Contest, tally: Tally, is_long: bool) -> None:
    """One outcome for all of them, and not a byte changed."""
    dice = random.Random(f"{SEED} {hook}")
    macs = wire(Ether(src=macs_of(hook, pod_one, pod_two)[0], dst=macs_of(hook, pod_one, pod_two)[1]))[:12]
    frames = [
        ipv6(macs, chain, dice.choice(TRANSPORTS), dice)
        for chain in chains(dice, RANDOM_LONG if is_long else RANDOM)
    ]
    # Cut anywhere behind the fixed header, which a test run wants whole.
    frames += [frame[: dice.randrange(54, len(frame))] for frame in frames[:500]]
    seen = contest.play(frames)

    assert contest.wrong == [], contest.wrong[0]
    changed = sum(frame != one.verdict.frame for frame, one in zip(frames, seen, strict=True))
    tally(
        f"K7 {hook}",
        injected=len(frames),
        delivered=contest.went_on,
        wrong=changed,
        deepest=DEEPEST,
        seed=SEED,
    )
    assert changed == 0
    assert set(contest.outcomes) == {EXPECTED[hook.partition(",")[0]]}


@pytest.mark.parametrize("hook", ["from_container", "to_container", "from_host", "from_overlay"])
def test_extension_headers_behind_ipv4_are_no_transport(hook: str, contest: Contest) -> None:
    """What they lead to is not looked at: nothing goes on, whatever stands where ports would."""
    source, target, _ = WAYS[hook][0]
    smac, dmac = macs_of(hook, source, target)
    dice = random.Random(SEED)
    for kind in (*EXTENSIONS, 41):
        packet = Ether(src=smac, dst=dmac) / IP(src=source.ip, dst=target.ip, proto=kind) / udp(40001, 53)
        frame = wire(packet)
        contest.play(frame[:34] + _extension(kind, 17, dice) + frame[34:] for _ in range(8))

    assert contest.wrong == []
    assert set(contest.outcomes) == {"2/137"}
