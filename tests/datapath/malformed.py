# SPDX-License-Identifier: Apache-2.0
"""
Frames of every kind the parser knows or refuses, and the ways to spoil them.

Only bytes are made here; what they mean is said by reference/parser.py and by the programs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scapy.layers.inet import IPOption_NOP

from fixtures.packets import (
    ARP,
    ICMP,
    IP,
    TCP,
    Ether,
    Raw,
    from_pod,
    ping,
    pod_one,
    pod_two,
    pong,
    router,
    sctp,
    tcp,
    udp,
    unreachable,
    who_has,
    wire,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from scapy.packet import Packet

IPV4, IPV6 = b"\x08\0", b"\x86\xdd"
IP_AT, L4_PROTOCOL_AT = 14, 23
ETHERNET = 14
# Outer IPv4 and ICMP, quoted IPv4 with options, quoted ports: deeper than any parser looks.
DEEPEST = 14 + 20 + 8 + 28 + 8
BYTES = (0, 1, 3, 6, 8, 11, 17, 0x45, 0x46, 0x4F, 132, 0xFF)
WORDS = (0, 1, 8, 20, 28, 0x2000, 0x1FFF, 0x7FFF, 0xFFFF)


def _quoted(layer: Packet, **ip: object) -> bytes:
    """What an error of the receiver would quote."""
    return from_pod(pod_two, pod_one.ip, layer, **ip)


def _error(kind: int, quoted: bytes) -> Packet:
    return ICMP(type=kind) / Raw(quoted[IP_AT:])


# What stands behind the IPv4 header, and fields of that.
PACKETS: dict[str, tuple[Packet, dict[str, object]]] = {
    "tcp": (tcp(30000, 80), {}),
    "tcp with options": (TCP(sport=30000, dport=80, flags="S", options=[("MSS", 1460)]), {}),
    "tcp with data": (tcp(30000, 80, "PA", b"payload"), {}),
    "tcp behind IP options": (tcp(30000, 80), {"options": [IPOption_NOP()] * 4}),
    "tcp behind all IP options there can be": (tcp(30000, 80), {"options": [IPOption_NOP()] * 40}),
    "udp": (udp(5000, 53, b"query"), {}),
    "udp without checksum": (udp(5000, 53, b"query", chksum=0), {}),
    "udp without payload": (udp(5000, 53, b""), {}),
    "sctp": (sctp(4000, 36412, b"init"), {}),
    "echo": (ping(77, b"ping"), {}),
    "echo reply": (pong(77, b"pong"), {}),
    "first fragment of udp": (udp(5000, 53, b"12345678"), {"flags": "MF", "id": 500}),
    "later fragment of udp": (Raw(b"12345678"), {"frag": 2, "id": 500, "proto": 17}),
    "later fragment nobody announced": (Raw(b"12345678"), {"frag": 2, "id": 501, "proto": 17}),
    "first fragment of an echo": (ping(77, b"12345678"), {"flags": "MF", "id": 502}),
    "later fragment of an echo": (Raw(b"12345678"), {"frag": 2, "id": 502, "proto": 1}),
    "first fragment of tcp": (tcp(30000, 80, "A", b"1234"), {"flags": "MF", "id": 503}),
    "first fragment of an error": (_error(3, _quoted(udp(53, 5000))), {"flags": "MF", "id": 504}),
    "unreachable, udp": (unreachable(_quoted(udp(53, 5000, b""))), {}),
    "unreachable, tcp": (unreachable(_quoted(tcp(80, 30000))), {}),
    "unreachable, sctp": (unreachable(_quoted(sctp(80, 30000, b""))), {}),
    "unreachable, echo": (unreachable(_quoted(ping(77, b""))), {}),
    "unreachable, echo reply": (unreachable(_quoted(pong(77, b""))), {}),
    "unreachable, an error": (unreachable(_quoted(_error(3, _quoted(udp(53, 5000, b""))))), {}),
    "unreachable, IP options": (
        unreachable(_quoted(udp(53, 5000, b""), options=[IPOption_NOP()] * 8)),
        {},
    ),
    "unreachable, later fragment": (unreachable(_quoted(Raw(b"12345678"), frag=2, proto=17)), {}),
    "unreachable, gre": (unreachable(_quoted(Raw(b"12345678"), proto=47)), {}),
    "time exceeded": (_error(11, _quoted(udp(53, 5000, b""))), {}),
    "parameter problem": (_error(12, _quoted(udp(53, 5000, b""))), {}),
    "redirect": (_error(5, _quoted(udp(53, 5000, b""))), {}),
    "timestamp": (ICMP(type=13), {}),
    "gre": (Raw(b"12345678"), {"proto": 47}),
    "igmp": (Raw(b"12345678"), {"proto": 2}),
}


def frames(src_mac: str, dst_mac: str, src: str, dst: str) -> dict[str, bytes]:
    """The whole table between two addresses; first fragments stand before their later ones."""
    ethernet = Ether(src=src_mac, dst=dst_mac)
    macs = wire(ethernet)[:12]
    table = {
        name: wire(ethernet.copy() / IP(src=src, dst=dst, **fields) / layer.copy())
        for name, (layer, fields) in PACKETS.items()
    }
    return table | {
        "arp": macs + who_has(pod_one, router.ip)[12:],
        "arp for another": macs + who_has(pod_one, pod_two.ip)[12:],
        "arp answer": wire(ethernet.copy() / ARP(op=2, psrc=pod_one.ip, pdst=router.ip)),
        "vlan": macs + b"\x81\0\0\7" + table["udp"][12:],
        "ipv6": macs + b"\x86\xdd" + b"`" + bytes(59),
        "unknown ethertype": macs + b"\x12\x34" + bytes(40),
        "802.3 length": macs + b"\0\x28" + bytes(40),
    }


def runnable(frame: bytes) -> bool:
    """Whether the kernel takes it for a test run: it wants IP headers whole (since Linux 6.18)."""
    headers = {IPV4: 20, IPV6: 40}
    return len(frame) >= ETHERNET + headers.get(frame[12:14], 1)


def cut(frame: bytes) -> Iterator[bytes]:
    """Ending at every byte a frame can end at."""
    return (frame[:size] for size in range(ETHERNET, len(frame) + 1))


def replaced(frame: bytes, dice: random.Random, *, deepest: int = DEEPEST) -> Iterator[bytes]:
    """Every byte of every header with other values."""
    for at in range(min(len(frame), deepest)):
        for value in {0, 0xFF, (frame[at] + 1) & 0xFF, dice.randrange(256)} - {frame[at]}:
            yield frame[:at] + bytes([value]) + frame[at + 1 :]


def lying(frame: bytes) -> Iterator[bytes]:
    """With every header length and version there is, and total lengths that are wrong both ways."""
    if frame[12:IP_AT] != IPV4:
        return
    first = frame[IP_AT]
    for nibble in range(16):
        yield frame[:IP_AT] + bytes([first & 0xF0 | nibble]) + frame[IP_AT + 1 :]
        yield frame[:IP_AT] + bytes([first & 0x0F | nibble << 4]) + frame[IP_AT + 1 :]
    true = int.from_bytes(frame[16:18], "big")
    for total in {*range(true + 5), 0x7FFF, 0xFFFF}:
        changed = frame[:16] + total.to_bytes(2, "big") + frame[18:]
        yield changed
        yield changed + b"padding"
    offset_at = IP_AT + (first & 15) * 4 + 12
    if frame[L4_PROTOCOL_AT] == 6 and len(frame) > offset_at:
        for words in range(16):
            yield frame[:offset_at] + bytes([words << 4]) + frame[offset_at + 1 :]


def mutated(frame: bytes, dice: random.Random, *, deepest: int = DEEPEST) -> bytes:
    """Up to four random changes behind the MAC addresses."""
    data = bytearray(frame)
    for _ in range(dice.randint(1, 4)):
        match dice.randrange(6):
            case 0:
                del data[dice.randrange(ETHERNET + 2, len(data) + 1) :]
            case 1:
                data += dice.randbytes(dice.randint(1, 24))
            case 2:
                at = dice.randrange(12, len(data) - 1)
                data[at : at + 2] = dice.choice(WORDS).to_bytes(2, "big")
            case _:
                at = dice.randrange(12, min(len(data), deepest))
                data[at] = dice.choice((*BYTES, dice.randrange(256)))
    return bytes(data)
