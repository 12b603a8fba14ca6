# SPDX-License-Identifier: Apache-2.0
"""
The table of K5: every field of every header at its borders, by name, and what stands in frames beside IPv4.

Frames of malformed.py are the stock; a shape is one of them with a few bytes replaced.  Sums that a change
makes wrong stay wrong: no program verifies them, and none may mend them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from datapath.malformed import IP_AT, IPV4, L4_PROTOCOL_AT, cut, frames, lying
from fixtures.packets import Place, node_one, pod_one, pod_two, svc_one, world_one

L4_AT = 34  # behind an IPv4 header without options
TCP, UDP = 6, 17
ETHERTYPES = {
    "nothing": 0,
    "802.3, small": 46,
    "802.3, largest": 1500,
    "between lengths and types": 1535,
    "wake-on-LAN": 0x0842,
    "RARP": 0x8035,
    "802.1Q": 0x8100,
    "IPX": 0x8137,
    "IPv6": 0x86DD,
    "MAC control": 0x8808,
    "MPLS": 0x8847,
    "MPLS multicast": 0x8848,
    "PPPoE discovery": 0x8863,
    "PPPoE": 0x8864,
    "EAPOL": 0x888E,
    "802.1ad": 0x88A8,
    "LLDP": 0x88CC,
    "MACsec": 0x88E5,
    "PTP": 0x88F7,
    "FCoE": 0x8906,
    "QinQ of old": 0x9100,
    "loopback": 0x9000,
    "transparent bridging": 0x6558,
    "all ones": 0xFFFF,
}
TAGS = {
    "one tag": b"\x81\0\0\7",
    "priority tag": b"\x81\0\xe0\0",
    "two tags": b"\x88\xa8\0\7\x81\0\0\x08",
    "three tags": b"\x88\xa8\0\7\x81\0\0\x08\x81\0\0\x09",
}
SUMS = (b"\0\0", b"\xff\xff", b"\0\1", b"\xde\xad")
# Options of RFC 791 and RFC 2113, padded to words; the last two lie about their lengths.
OPTIONS = {
    "end of list": b"\0\0\0\0",
    "router alert": b"\x94\x04\0\0",
    "record route": b"\x07\x07\x04\0\0\0\0\0",
    "timestamp": b"\x44\x08\x05\0\0\0\0\0",
    "loose source route": b"\x83\x07\x04\xc0\x00\x02\x01\0",
    "strict source route": b"\x89\x07\x04\xc0\x00\x02\x01\0",
    "no length": b"\x07\0\0\0",
    "length beyond the header": b"\x07\xff\x04\0",
}


def _with(frame: bytes, at: int, new: bytes) -> bytes:
    return frame[:at] + new + frame[at + len(new) :]


def _optioned(frame: bytes, options: bytes) -> bytes:
    """With IP options put in, and lengths that say so."""
    words = 5 + len(options) // 4
    total = (int.from_bytes(frame[16:18], "big") + len(options)).to_bytes(2, "big")
    head = bytes([0x40 | words]) + frame[15:16] + total + frame[18:L4_AT]
    return frame[:IP_AT] + head + options + frame[L4_AT:]


def at_port(stock: dict[str, bytes], port: int | None) -> dict[str, bytes]:
    """The stock with this destination port in TCP and UDP, for who is asked at another."""
    if port is None:
        return stock
    to = port.to_bytes(2, "big")
    return {
        name: _with(frame, L4_AT + 2, to)
        if frame[12:15] == IPV4 + b"\x45" and frame[L4_PROTOCOL_AT] in {TCP, UDP} and "later" not in name
        else frame
        for name, frame in stock.items()
    }


def table(src_mac: str, dst_mac: str, src: str, dst: str, port: int | None = None) -> dict[str, bytes]:
    """Shapes between two addresses, by name; first fragments stand before their later ones."""
    stock = at_port(frames(src_mac, dst_mac, src, dst), port)
    return dict(itertools.chain(stock.items(), _headers(stock), _transports(stock), _errors(stock)))


def _transports(stock: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Every value of each small field, and ports and sums at their borders."""
    tcp, udp, sctp, echo = (stock[name] for name in ("tcp", "udp", "sctp", "echo"))
    # TCP with 40 bytes of options, so that every data offset is within the packet.
    roomy = _with(tcp + bytes(40), 16, (80).to_bytes(2, "big"))
    for value in range(256):
        yield f"tcp flags {value:#04x}", _with(tcp, L4_AT + 13, bytes([value]))
        yield f"protocol {value}", _with(udp, L4_PROTOCOL_AT, bytes([value]))
        yield f"icmp type {value}", _with(echo, L4_AT, bytes([value]))
    for words in range(16):
        yield f"tcp data offset {words}", _with(roomy, L4_AT + 12, bytes([words << 4]))
        yield f"tcp reserved bits {words}", _with(tcp, L4_AT + 12, bytes([0x50 | words]))
    edges = (0, 53, 80, 0xFFFF)
    for frame, name in ((tcp, "tcp"), (udp, "udp"), (sctp, "sctp")):
        for sport, dport in itertools.product(edges, repeat=2):
            ports = sport.to_bytes(2, "big") + dport.to_bytes(2, "big")
            yield f"{name} ports {sport} to {dport}", _with(frame, L4_AT, ports)


def _headers(stock: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """IPv4 with its options, sums, hops and fragment bits; what may stand before it, or instead."""
    for name, at in (("tcp", 16), ("udp", 6), ("echo", 2)):
        frame = stock[name]
        changes = {
            **{f"sum {value.hex()}": _with(frame, L4_AT + at, value) for value in SUMS},
            **{f"IP sum {value.hex()}": _with(frame, IP_AT + 10, value) for value in SUMS},
            **{f"ttl {ttl}": _with(frame, IP_AT + 8, bytes([ttl])) for ttl in (0, 1, 2, 255)},
            **{f"fragment bits {n}": _with(frame, IP_AT + 6, bytes([n << 5, 0])) for n in range(8)},
            **{f"behind {n} bytes of options": _optioned(frame, b"\1" * n) for n in range(4, 44, 4)},
            **{f"behind {option}": _optioned(frame, data) for option, data in OPTIONS.items()},
            **{f"behind {tag}": frame[:12] + data + frame[12:] for tag, data in TAGS.items()},
        }
        yield from ((f"{name} {change}", changed) for change, changed in changes.items())
    for name, number in ETHERTYPES.items():
        yield f"ethertype of {name}", _with(stock["tcp"], 12, number.to_bytes(2, "big"))


def _errors(stock: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """ICMP errors about packets that this sender never saw: between others, of others, of itself."""
    people: dict[str, Place] = {
        "one": pod_one,
        "two": pod_two,
        "the node": node_one,
        "a service": svc_one,
        "the world": world_one,
    }
    head = stock["echo"][:L4_AT]
    for about in ("tcp", "udp", "sctp", "echo", "echo reply"):
        for (source, src), (target, dst) in itertools.product(people.items(), repeat=2):
            quoted = stock[about][IP_AT : IP_AT + 12] + src.address.packed + dst.address.packed
            error = b"\x03\x03\0\0\0\0\0\0" + quoted + stock[about][L4_AT : L4_AT + 8]
            total = (20 + len(error)).to_bytes(2, "big")
            yield f"error about {about}, {source} to {target}", _with(head, 16, total) + error
            turned = error[:28] + error[30:32] + error[28:30] + error[32:]
            yield f"error about {about} back, {source} to {target}", _with(head, 16, total) + turned


def spoiled(stock: dict[str, bytes]) -> Iterator[bytes]:
    """Every frame of malformed.py's table ending at every byte, and with every length that there is."""
    for frame in stock.values():
        yield from cut(frame)
        yield from lying(frame)
