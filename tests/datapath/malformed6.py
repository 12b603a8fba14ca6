# SPDX-License-Identifier: Apache-2.0
"""
IPv6 of every kind the parser knows or refuses, and the ways to spoil it: malformed.py for the other family.

Only bytes are made here; what they mean is said by reference/parser6.py and by the programs.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from ipaddress import IPv6Address

from ciliumd.model.net import mac_bytes
from fixtures.packets import TCP, Raw, sctp, tcp, udp, wire
from fixtures.packets6 import IPv6, node_one, ping, pod_one, pod_two, pong, router, solicitation, world_one
from reference.frame import internet_sum

IP_AT, L4_AT = 14, 54
HOP_BY_HOP, ROUTING, FRAGMENT, ESP, AH, NO_NEXT, DESTINATION, MOBILITY = 0, 43, 44, 50, 51, 59, 60, 135
EXTENSIONS = (HOP_BY_HOP, ROUTING, FRAGMENT, ESP, AH, NO_NEXT, DESTINATION, MOBILITY)
ICMP = 58
# Outer header, ICMP, quoted header, quoted ports.
DEEPEST = 14 + 40 + 8 + 40 + 8
BODY = b"may the force be with you"


def packed(address: str) -> bytes:
    """An address as it is on the wire."""
    return IPv6Address(address).packed


def header(src: str, dst: str, following: int, size: int, *, hops: int = 64) -> bytes:
    """The fixed header."""
    return b"\x60\0\0\0" + size.to_bytes(2, "big") + bytes([following, hops]) + packed(src) + packed(dst)


def packet(src: str, dst: str, following: int, payload: bytes, *, hops: int = 64) -> bytes:
    """A packet without its frame."""
    return header(src, dst, following, len(payload), hops=hops) + payload


def transport(layer: object, src: str, dst: str) -> tuple[int, bytes]:
    """Protocol and bytes of a scapy layer, with the sum that these addresses need."""
    whole = wire(IPv6(src=src, dst=dst) / layer.copy())  # type: ignore[attr-defined]  # scapy has no types
    return whole[6], whole[40:]


def extension(kind: int, following: int, dice: random.Random) -> bytes:
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
    body = dice.randbytes(6 + 8 * size)
    # Of three routing headers two are done: only those lead on.
    if kind == ROUTING and dice.randrange(3):
        body = body[:1] + b"\0" + body[2:]
    return bytes([following, size]) + body


def chained(src: str, dst: str, chain: tuple[int, ...], dice: random.Random, *, hops: int = 64) -> bytes:
    """A packet with these headers in this order, and one of the transports behind them."""
    protocol, body = transport(
        dice.choice((tcp(40001, 80), udp(40001, 53), sctp(40001, 99), ping(9))), src, dst
    )
    following = [*chain[1:], protocol][: len(chain)]
    parts = b"".join(extension(kind, after, dice) for kind, after in zip(chain, following, strict=True))
    return packet(src, dst, chain[0] if chain else protocol, parts + body, hops=hops)


def fragments(src: str, dst: str, layer: object, number: int) -> tuple[bytes, bytes]:
    """A transport packet in two."""
    protocol, whole = transport(layer, src, dst)
    name = number.to_bytes(4, "big")
    first = bytes([protocol, 0]) + b"\0\1" + name + whole[:24]
    later = bytes([protocol, 0]) + (24).to_bytes(2, "big") + name + whole[24:]
    return packet(src, dst, FRAGMENT, first), packet(src, dst, FRAGMENT, later)


def icmp(src: str, dst: str, kind: int, code: int, body: bytes, *, hops: int = 64) -> bytes:
    """An ICMPv6 packet with a right sum; *body* is what stands behind type, code and sum."""
    told = bytes([kind, code, 0, 0]) + body
    pseudo = packed(src) + packed(dst) + len(told).to_bytes(4, "big") + bytes([0, 0, 0, ICMP])
    even = told + b"\0" * (len(told) % 2)
    told = told[:2] + internet_sum(pseudo + even).to_bytes(2, "big") + told[4:]
    return packet(src, dst, ICMP, told, hops=hops)


def _packets(src: str, dst: str) -> Iterator[tuple[str, bytes]]:
    layers = {
        "tcp": tcp(30000, 80),
        "tcp with options": TCP(sport=30000, dport=80, flags="S", options=[("MSS", 1460)]),
        "tcp with data": tcp(30000, 80, "PA", b"payload"),
        "udp": udp(5000, 53, b"query"),
        "udp without payload": udp(5000, 53, b""),
        "sctp": sctp(4000, 36412, b"init"),
        "echo": ping(77, b"ping"),
        "echo reply": pong(77, b"pong"),
    }
    for name, layer in layers.items():
        protocol, body = transport(layer, src, dst)
        yield name, packet(src, dst, protocol, body)
        for hops in (0, 1, 2, 255):
            yield f"{name}, {hops} hops", packet(src, dst, protocol, body, hops=hops)
        first, later = fragments(src, dst, layer / Raw(BODY * 2), 500 + len(name))
        yield f"first fragment of {name}", first
        yield f"later fragment of {name}", later
    yield "later fragment nobody announced", fragments(src, dst, udp(1, 2, BODY * 2), 9)[1]
    protocol, body = transport(udp(5000, 53), src, dst)
    yield "whole in one fragment", packet(src, dst, FRAGMENT, bytes([protocol]) + bytes(7) + body)
    for following in (0, 1, 4, 41, 43, 44, 47, 50, 51, 59, 60, 135, 139, 253, 255):
        yield f"next header {following}", packet(src, dst, following, body)
        fragment = bytes([following, 0]) + b"\0\1" + b"frag" + body
        yield f"next header {following} in a fragment", packet(src, dst, FRAGMENT, fragment)
    yield from _errors(src, dst)


def _errors(src: str, dst: str) -> Iterator[tuple[str, bytes]]:
    """Every type of ICMPv6, and errors about all that can be quoted."""
    for kind in range(256):
        yield f"icmp type {kind}", icmp(src, dst, kind, 0, bytes(4) + BODY)
    dice = random.Random(src + dst)
    people = [src, dst, pod_one.ip, pod_two.ip, node_one.ip, router.ip, world_one.ip]
    layers = (tcp(80, 30000), udp(53, 5000), sctp(80, 30000), ping(77), pong(77))
    for kind, layer, (one, two) in itertools.product(
        (1, 2, 3, 4), layers, {(dst, src), (src, dst), *itertools.permutations(people, 2)}
    ):
        protocol, body = transport(layer, one, two)
        quoted = packet(one, two, protocol, body)[:48]
        yield f"error {kind} about {protocol} from {one} to {two}", icmp(src, dst, kind, 0, bytes(4) + quoted)
    quoted = packet(dst, src, ICMP, b"\1\4\0\0" + bytes(4))
    yield "error about an error", icmp(src, dst, 1, 4, bytes(4) + quoted)
    for chain in itertools.product(EXTENSIONS, repeat=2):
        quoted = chained(dst, src, chain, dice)
        yield f"error about a packet with {chain}", icmp(src, dst, 1, 4, bytes(4) + quoted)
    for piece in fragments(dst, src, udp(53, 5000, BODY * 2), 3):
        yield f"error about a fragment {piece[42:44].hex()}", icmp(src, dst, 2, 0, bytes(4) + piece)


def frames(src_mac: str, dst_mac: str, src: str, dst: str) -> dict[str, bytes]:
    """The whole table between two addresses; first fragments stand before their later ones."""
    macs = mac_bytes(dst_mac) + mac_bytes(src_mac)
    table = {name: macs + b"\x86\xdd" + data for name, data in _packets(src, dst)}
    udp_frame = table["udp"]
    for name, address in {
        "mapped": "::ffff:10.0.1.11",
        "nobody": "::",
        "itself": "::1",
        "old dress": "::10.0.1.11",
        "group": "ff02::1",
        "of the link": "fe80::1",
    }.items():
        table[f"from {name}"] = udp_frame[:22] + packed(address) + udp_frame[38:]
        table[f"to {name}"] = udp_frame[:38] + packed(address) + udp_frame[54:]
    table["asks for the router"] = macs + solicitation(pod_one, router.ip)[12:]
    table["asks for another"] = macs + solicitation(pod_one, pod_two.ip)[12:]
    table["asks in another's name"] = macs + solicitation(pod_one, router.ip, source=pod_two.ip)[12:]
    return table


def lying(frame: bytes) -> Iterator[bytes]:
    """With every version there is, and payload lengths that are wrong both ways."""
    for nibble in range(16):
        yield frame[:IP_AT] + bytes([frame[IP_AT] & 0x0F | nibble << 4]) + frame[IP_AT + 1 :]
    true = int.from_bytes(frame[18:20], "big")
    for total in {*range(true + 5), 0x7FFF, 0xFFFF}:
        changed = frame[:18] + total.to_bytes(2, "big") + frame[20:]
        yield changed
        yield changed + b"padding"
