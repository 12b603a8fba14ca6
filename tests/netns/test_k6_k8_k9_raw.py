# SPDX-License-Identifier: Apache-2.0
"""
K8: pods that lie about who they are.  K9: the tunnel believes nodes alone, about themselves and their pods.

Nothing of it arrives anywhere, and every frame is counted under the reason of its kind.  K6: fragments do
arrive, but never before their first.
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from ciliumd.abi import DropReason, Identity
from lab.waiting import eventually
from netns.lies import Lies, forged, frame_of, identity_of, inner, of_addresses, of_neighbours, outer, vxlan
from netns.spoofing import (
    FRAMES,
    FRAMES_LONG,
    HONEST,
    MARK,
    TUNNEL_PORT,
    Lab,
    Sender,
    dropped,
    inject,
    laboratory,
    report,
)

pytestmark = pytest.mark.netns

UDP_NUMBER, DISCARD = 17, 9


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two nodes, and a raw socket at every place."""
    with laboratory() as lab:
        yield lab


def test_honest_frames_arrive(lab: Lab) -> None:
    """The raw sockets work, and so do those who look: else nothing that follows would mean anything."""
    udp = UDP(sport=5000, dport=DISCARD)
    for sender in lab.senders:
        targets = [*(other.pod.address for other in lab.others(sender)), lab.far_pod.address]
        targets += [lab.near.address, lab.cluster.world.far]
        sender.end.send(frame_of(sender, sender.pod.address, to, udp, Raw(HONEST)) for to in targets)
    expected = {
        **{f"pod {sender.pod.name}": 2 for sender in lab.senders},
        "pod far": 3,
        "node": 3,
        # To the far pod in the tunnel, and to the world.
        "wire": 6,
    }
    seen: Counter[str] = Counter()

    def all_there() -> bool:
        # Who has no such port says so, and quotes.
        seen.update(lab.arrived(HONEST, protocol=UDP_NUMBER))
        return all(seen[name] >= count for name, count in expected.items())

    eventually(all_there, what="honest frames")

    assert {name: seen[name] for name in expected} == expected


@pytest.mark.parametrize("lies", [of_addresses, of_neighbours])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_pod_cannot_speak_for_another(
    lab: Lab,
    number: int,
    lies: Callable[[Lab, Sender], Lies],
    is_long: bool,
    record_property: Callable[[str, object], None],
) -> None:
    """To nobody, and in nobody's name."""
    sender = lab.senders[number]
    count = FRAMES_LONG if is_long else FRAMES
    done = [
        inject(lab, sender.end, ("K8", kind), reason, frames, count)
        for kind, (reason, frames) in lies(lab, sender).items()
    ]

    report(record_property, f"K8 pod {sender.pod.name}", done)


def test_what_a_node_may_say_arrives(lab: Lab) -> None:
    """The frames are well made: one that only the other node could send is taken in."""
    carried = inner(lab.far_pod.address, lab.senders[0].pod.address, HONEST)
    lab.world.send([outer(lab, lab.far.address, identity_of(lab.far_pod), carried)])

    eventually(lambda: lab.arrived(HONEST).get("pod one") == 1, what="the other node's word")


def test_outsider_cannot_speak_in_the_tunnel(
    lab: Lab, is_long: bool, record_property: Callable[[str, object], None]
) -> None:
    """Whatever identity it claims, and for whomever it claims to speak."""
    done = [
        inject(lab, lab.world, ("K9", kind), reason, frames, FRAMES_LONG if is_long else 10 * FRAMES)
        for kind, (reason, frames) in forged(lab).items()
    ]

    report(record_property, "K9 outsider", done)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_pod_cannot_reach_the_port_of_a_tunnel(
    lab: Lab, number: int, is_long: bool, record_property: Callable[[str, object], None]
) -> None:
    """Masqueraded it would be a node's word; whole or in fragments, to every node and past them."""
    sender = lab.senders[number]
    payload = Raw(vxlan(Identity.ID_HOST, inner(lab.router, lab.far_pod.address)))
    udp = UDP(sport=5000, dport=TUNNEL_PORT)
    frames = []
    for to in (
        *(lab.far.address, lab.near.address, lab.near.gateway, lab.cluster.world.far),
        *(lab.router, lab.cluster.router(lab.far)),
    ):
        macs, ip = Ether(src=sender.mac, dst=sender.gateway_mac), {"src": sender.pod.address, "dst": to}
        frames.append(bytes(macs / IP(**ip) / udp / payload))
        frames.append(bytes(macs / IP(**ip, id=7, flags="MF") / udp / payload))
        frames.append(bytes(macs / IP(**ip, id=7, frag=9, proto=17) / Raw(MARK)))
    count = FRAMES_LONG if is_long else FRAMES
    kind = ("K9", "pod to the tunnel's port")
    done = inject(lab, sender.end, kind, DropReason.DROP_ENCAP_PROHIBITED, frames, count)

    report(record_property, f"K9 pod {sender.pod.name}", [done])


# ---- K6: fragments over real devices -----------------------------------------------------------


def pieces(sender: Sender, target: str, number: int) -> dict[str, bytes]:
    """A datagram in three; each piece has the mark of what must arrive."""
    udp = bytes(IP(src=sender.pod.address, dst=target) / UDP(sport=5000, dport=DISCARD) / Raw(HONEST * 3))[
        20:
    ]
    cuts = {"first": (0, 32), "middle": (32, 56), "last": (56, len(udp))}
    made = {}
    for name, (start, end) in cuts.items():
        fields = {"frag": start // 8, "flags": "MF" if name != "last" else 0, "id": number, "proto": 17}
        packet = IP(src=sender.pod.address, dst=target, **fields) / Raw(udp[start:end])
        made[name] = bytes(Ether(src=sender.mac, dst=sender.gateway_mac) / packet)
    return made


def awaited(lab: Lab, place: str, count: int) -> int:
    """How many honest UDP frames came to a place, once so many are there."""
    seen: Counter[str] = Counter()

    def all_there() -> bool:
        # Who has no such port says so, and quotes.
        seen.update(lab.arrived(HONEST, protocol=UDP_NUMBER))
        return seen[place] >= count

    eventually(all_there, what=f"{count} frames at {place}")
    return seen[place]


def test_fragments_arrive_behind_their_first_and_never_before_it(
    lab: Lab, record_property: Callable[[str, object], None]
) -> None:
    """K6: to a pod, through the tunnel and to the world, in every order; early ones are counted."""
    sender, neighbour = lab.senders[0], lab.senders[1]
    ways = {
        f"pod {neighbour.pod.name}": neighbour.pod.address,
        "pod far": lab.far_pod.address,
        "wire": lab.cluster.world.far,
    }
    sent = came = early = 0
    for place, target in ways.items():
        for number, order in enumerate(itertools.permutations(("first", "middle", "last")), 1000):
            before = dropped(lab.near)[DropReason.DROP_FRAG_NOT_FOUND]
            made = pieces(sender, target, number)
            sent += sender.end.send(made[name] for name in order)
            known = len(order) - order.index("first")
            seen = awaited(lab, place, known)
            refused = dropped(lab.near)[DropReason.DROP_FRAG_NOT_FOUND] - before
            assert (seen, refused) == (known, len(order) - known), (place, order)
            came += seen
            early += refused
    row = {
        "case": "K6",
        "what": "raw sockets",
        "injected": sent,
        "delivered": came,
        "wrong": sent - came - early,
    }
    record_property("data", json.dumps(row | {"early": early}))
    record_property("figure", f"K6 raw sockets: injected {sent}, delivered {came}, refused as early {early}")
