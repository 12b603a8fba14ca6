# SPDX-License-Identifier: Apache-2.0
"""
Addresses as the datapath spells them: 16 bytes, IPv4 mapped into IPv6 (RFC 4291 2.5.5.2).

Conversions, and how prefixes lie to each other; which address means what is not decided here.
"""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeVar

Addr = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network
T = TypeVar("T", Addr, Prefix)

_V4_MAPPED = b"\0" * 10 + b"\xff\xff"


def addr16(addr: Addr) -> bytes:
    """The 16 bytes of *addr*; an IPv4 address is mapped as ``::ffff:a.b.c.d``."""
    return _V4_MAPPED + addr.packed if addr.version == 4 else addr.packed


def addr_from16(data: bytes) -> Addr:
    """The address whose :func:`addr16` is *data*."""
    if len(data) != 16:
        raise ValueError(f"an address has 16 bytes, not {len(data)}")
    return IPv4Address(data[12:]) if data[:12] == _V4_MAPPED else IPv6Address(data)


def prefix_bits16(prefix: Prefix) -> int:
    """Length of *prefix* counted over the 128 bits of :func:`addr16`."""
    return prefix.prefixlen + (96 if prefix.version == 4 else 0)


def is_single(prefix: Prefix) -> bool:
    """Whether *prefix* holds exactly one address."""
    return prefix.prefixlen == prefix.max_prefixlen


def first_of(family: int, those: Iterable[T]) -> T | None:
    """The first of IPv4 (4) or of IPv6 (6) of addresses or prefixes."""
    return next((one for one in those if one.version == family), None)


def holds(outer: Prefix, inner: Prefix) -> bool:
    """Whether all of *inner* lies in *outer*; nothing of one family lies in the other."""
    return outer.prefixlen <= inner.prefixlen and inner.network_address in outer


class LongestPrefix:
    """Which of *prefixes* hold an address; asked once per length that there is."""

    def __init__(self, prefixes: Iterable[Prefix]) -> None:
        self._known: dict[tuple[int, int], dict[int, Prefix]] = {}
        for prefix in prefixes:
            bits = int(prefix.network_address) >> (prefix.max_prefixlen - prefix.prefixlen)
            self._known.setdefault((prefix.version, prefix.prefixlen), {})[bits] = prefix
        self._longest_first = sorted(self._known, reverse=True)

    def around(self, address: Addr) -> Iterator[Prefix]:
        """Every one that holds *address*, the longest first."""
        for version, length in self._longest_first:
            if version == address.version:
                bits = int(address) >> (address.max_prefixlen - length)
                prefix = self._known[version, length].get(bits)
                if prefix is not None:
                    yield prefix


def prefix_order(prefix: Prefix) -> tuple[int, int, int]:
    """Sorts prefixes of both families: IPv4 first, by address, wider before narrower."""
    return (prefix.version, int(prefix.network_address), prefix.prefixlen)


def fold32(data: bytes) -> int:
    """
    The 32-bit fold that guards rows of recycled hash maps ("check" fields).

    ``h = h * 31 + w`` over the little-endian u32 words of *data*, as the datapath computes it.
    """
    if len(data) % 4:
        raise ValueError(f"a fold needs whole 32-bit words, not {len(data)} bytes")
    fold = 0
    for start in range(0, len(data), 4):
        fold = (fold * 31 + int.from_bytes(data[start : start + 4], "little")) & 0xFFFFFFFF
    return fold


def host_port(addr: Addr | str, port: int) -> str:
    """``10.0.0.1:80`` or ``[fd00::1]:80``, as URLs write it (RFC 3986 3.2.2)."""
    text = str(addr)
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


def mac_bytes(text: str) -> bytes:
    """The six bytes of ``"aa:bb:cc:dd:ee:ff"``."""
    parts = text.split(":")
    if len(parts) != 6 or not all(len(part) == 2 for part in parts):
        raise ValueError(f"not a MAC address: {text!r}")
    try:
        return bytes(int(part, 16) for part in parts)
    except ValueError:
        raise ValueError(f"not a MAC address: {text!r}") from None


def mac_str(data: bytes) -> str:
    """``"aa:bb:cc:dd:ee:ff"`` of six bytes."""
    if len(data) != 6:
        raise ValueError(f"a MAC address has 6 bytes, not {len(data)}")
    return ":".join(f"{byte:02x}" for byte in data)
