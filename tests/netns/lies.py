# SPDX-License-Identifier: Apache-2.0
"""Frames that lie about who sends them, by kind: a pod's, and an outsider's in the tunnel."""

import itertools
from collections.abc import Iterable

from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_RA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from ciliumd.abi import DropReason, Identity
from lab.pod import Pod
from netns.spoofing import MARK, TUNNEL_PORT, WEB, Lab, Sender

EVERYBODY = "255.255.255.255"


def frame_of(sender: Sender, src: str, dst: str, *layers: Packet, mac: str | None = None) -> bytes:
    """What a pod puts on its veth; with the mark, if not said otherwise."""
    packet = Ether(src=mac or sender.mac, dst=sender.gateway_mac) / IP(src=src, dst=dst)
    for layer in layers or (UDP(sport=5000, dport=80), Raw(MARK)):
        packet /= layer
    return bytes(packet)


def _arp(sender: Sender, **fields: object) -> list[bytes]:
    arp = ARP(**{"hwsrc": sender.mac, **fields})
    return [bytes(Ether(src=sender.mac, dst="ff:ff:ff:ff:ff:ff") / arp / Raw(MARK))]


def _v6(sender: Sender, *layers: Packet, src: str = "fe80::1") -> list[bytes]:
    packet = Ether(src=sender.mac, dst="33:33:00:00:00:01") / IPv6(src=src, dst="ff02::1")
    for layer in layers:
        packet /= layer
    return [bytes(packet / Raw(MARK))]


Lies = dict[str, tuple[DropReason, list[bytes]]]


def _targets(lab: Lab, sender: Sender) -> list[str]:
    """Everybody a pod can send to."""
    return [
        *(other.pod.address for other in lab.others(sender)),
        *(lab.far_pod.address, lab.near.address, lab.router),
        *(lab.far.address, lab.cluster.world.far, WEB),
    ]


def of_addresses(lab: Lab, sender: Sender) -> Lies:
    """Under another's address, or from another's card."""
    other = lab.others(sender)[0]
    sources = {
        "another pod": other.pod.address,
        "a pod of the other node": lab.far_pod.address,
        "the node": lab.near.address,
        "the other node": lab.far.address,
        "the gateway": lab.router,
        "a service": WEB,
        "the world": lab.cluster.world.far,
        "a group": "224.0.0.1",
        "everybody": EVERYBODY,
        "nobody": "0.0.0.0",
        "loopback": "127.0.0.1",
    }
    macs = {
        "another pod": other.mac,
        "its gateway": sender.gateway_mac,
        "the wire": lab.wire_macs[0],
        "a group": "01:00:5e:00:00:01",
        "nobody": "00:00:00:00:00:00",
    }
    targets, mine = _targets(lab, sender), sender.pod.address
    kinds: Lies = {
        f"IPv4 of {name}": (DropReason.DROP_INVALID_SIP, [frame_of(sender, source, to) for to in targets])
        for name, source in sources.items()
    }
    return kinds | {
        f"MAC of {name}": (
            DropReason.DROP_INVALID_SMAC,
            [frame_of(sender, mine, to, mac=mac) for to in targets],
        )
        for name, mac in macs.items()
    }


def of_neighbours(lab: Lab, sender: Sender) -> Lies:
    """What would turn others' traffic to the pod, or their configuration."""
    mine, other = sender.pod.address, lab.others(sender)[0].pod.address
    targets = _targets(lab, sender)
    redirect = ICMP(type=5, code=1, gw=mine) / IP(src=mine, dst=lab.far_pod.address) / UDP() / Raw(MARK)
    advert = ICMPv6ND_NA(tgt="fe80::1", R=1, S=0, O=1) / ICMPv6NDOptDstLLAddr(lladdr=sender.mac)
    dhcp = frame_of(sender, mine, EVERYBODY, UDP(sport=67, dport=68), Raw(MARK))
    return {
        "ARP answer as the gateway": (
            DropReason.DROP_INVALID,
            _arp(sender, op=2, psrc=lab.router, pdst=other),
        ),
        "ARP answer nobody asked for": (DropReason.DROP_INVALID, _arp(sender, op=2, psrc=mine, pdst=mine)),
        "ARP question as another": (DropReason.DROP_INVALID_SIP, _arp(sender, psrc=other, pdst=lab.router)),
        "ARP question for another": (DropReason.DROP_UNKNOWN_TARGET, _arp(sender, psrc=mine, pdst=other)),
        "ICMP redirect": (
            DropReason.DROP_ICMP_TYPE,
            [frame_of(sender, mine, to, redirect) for to in targets],
        ),
        "ICMP redirect as the gateway": (
            DropReason.DROP_INVALID_SIP,
            [frame_of(sender, lab.router, to, redirect) for to in targets],
        ),
        "neighbour advertisement": (DropReason.DROP_UNKNOWN_L3, _v6(sender, advert)),
        "router advertisement": (DropReason.DROP_UNKNOWN_L3, _v6(sender, ICMPv6ND_RA())),
        "IPv6 of another": (DropReason.DROP_UNKNOWN_L3, _v6(sender, UDP(dport=80), src="2001:db8::1")),
        "DHCP answer to everybody": (DropReason.DROP_NO_FIB, [dhcp]),
    }


def vxlan(identity: int, inner: bytes) -> bytes:
    """RFC 7348, with an identity for a network's number."""
    return b"\x08\0\0\0" + identity.to_bytes(3, "big") + b"\0" + inner


def inner(src: str, dst: str, mark: bytes = MARK) -> bytes:
    """A frame in the tunnel."""
    macs = Ether(src="02:00:00:00:00:99", dst="02:00:00:00:00:98")
    return bytes(macs / IP(src=src, dst=dst, ttl=63) / UDP(sport=5000, dport=80) / Raw(mark))


def outer(lab: Lab, src: str, identity: int, carried: bytes) -> bytes:
    """A frame of the wire that carries it to the first node."""
    macs = Ether(src=lab.wire_macs[0], dst=lab.wire_macs[1])
    udp = UDP(sport=50000, dport=TUNNEL_PORT, chksum=0)
    return bytes(macs / IP(src=src, dst=lab.near.address) / udp / Raw(vxlan(identity, carried)))


def identity_of(pod: Pod) -> int:
    """Its number."""
    return int(pod.endpoint["status"]["identity"]["id"])


PRIVILEGED = (
    *(Identity.ID_HOST, Identity.ID_WORLD, Identity.ID_HEALTH, Identity.ID_REMOTE_NODE),
    *(Identity.ID_KUBE_APISERVER, Identity.ID_INGRESS, Identity.ID_UNKNOWN, (1 << 24) - 1),
)


def forged(lab: Lab) -> dict[str, tuple[DropReason, list[bytes]]]:
    """What an outsider puts on the wire, by kind."""
    pod, far, node = lab.senders[0].pod, lab.far_pod, lab.far.address
    far_router = lab.cluster.router(lab.far)
    here = (pod.address, lab.senders[1].pod.address, lab.router, lab.near.address)
    targets = (pod.address, lab.router, lab.near.address)
    everyone = (*PRIVILEGED, identity_of(pod), identity_of(far))

    def all_of(node: str, identities: Iterable[int], sources: Iterable[str]) -> list[bytes]:
        return [
            outer(lab, node, identity, inner(source, to))
            for identity, source, to in itertools.product(identities, sources, targets)
        ]

    not_its_own = (*PRIVILEGED, identity_of(pod))
    not_a_nodes = (Identity.ID_HOST, Identity.ID_INGRESS, identity_of(pod), identity_of(far))
    people = (far.address, far_router, node, *here, lab.cluster.world.far)
    sip, identity = DropReason.DROP_INVALID_SIP, DropReason.DROP_INVALID_IDENTITY
    return {
        "by a stranger": (DropReason.DROP_UNKNOWN_SENDER, all_of(lab.near.gateway, everyone, people)),
        "by a node, for somebody of another": (sip, all_of(node, everyone, (*here, lab.cluster.world.far))),
        "by a node, its pod as another": (identity, all_of(node, not_its_own, (far.address,))),
        "by a node, itself as a pod": (identity, all_of(node, not_a_nodes, (node, far_router))),
    }
