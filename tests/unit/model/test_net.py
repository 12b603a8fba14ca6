# SPDX-License-Identifier: Apache-2.0
"""Addresses, folds and MACs as the datapath spells them."""

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciliumd.model.net import (
    addr16,
    addr_from16,
    first_of,
    fold32,
    holds,
    host_port,
    is_single,
    mac_bytes,
    mac_str,
    prefix_bits16,
    prefix_order,
)

pytestmark = pytest.mark.unit


@given(st.ip_addresses())
def test_address_survives_its_sixteen_bytes(addr: IPv4Address | IPv6Address) -> None:
    """Bytes of an address give the address back; a mapped one comes back as the IPv4 address it is."""
    mapped = getattr(addr, "ipv4_mapped", None)

    assert (mapped or addr) == addr_from16(addr16(addr))


def test_ipv4_address_is_mapped() -> None:
    """IPv4 lives in ::ffff:0:0/96."""
    assert bytes.fromhex("00000000000000000000ffff0a000001") == addr16(IPv4Address("10.0.0.1"))


@given(st.binary(min_size=16, max_size=16))
def test_every_sixteen_bytes_are_an_address(data: bytes) -> None:
    """No bytes are lost on the way through an address."""
    assert data == addr16(addr_from16(data))


def test_fold_multiplies_by_31_over_little_endian_words() -> None:
    """The fold is h * 31 + w, modulo 2**32."""
    assert fold32(bytes.fromhex("010000000200000003000000")) == (1 * 31 + 2) * 31 + 3
    assert fold32(b"\xff" * 8) == (0xFFFFFFFF * 31 + 0xFFFFFFFF) % 2**32


def test_fold_of_a_torn_word_is_refused() -> None:
    """A fold is over whole words."""
    with pytest.raises(ValueError, match="whole 32-bit words"):
        fold32(b"12345")


@given(st.binary(min_size=6, max_size=6))
def test_mac_text_is_read_back(mac: bytes) -> None:
    """A MAC written as text and read again is the same."""
    assert mac == mac_bytes(mac_str(mac))


@pytest.mark.parametrize(
    "text", ["", "aa:bb:cc:dd:ee", "aa:bb:cc:dd:ee:ff:00", "aa:bb:cc:dd:ee:gg", "a:b:c:d:e:f"]
)
def test_text_that_is_no_mac_is_refused(text: str) -> None:
    """What is not six pairs of hex digits is no MAC."""
    with pytest.raises(ValueError, match="not a MAC address"):
        mac_bytes(text)


def test_prefix_length_counts_mapped_bits() -> None:
    """An IPv4 prefix is 96 bits longer among mapped addresses."""
    assert prefix_bits16(ip_network("10.0.0.0/8")) == 104
    assert prefix_bits16(ip_network("2001:db8::/32")) == 32


def test_single_address_prefixes_are_told_apart() -> None:
    """/32 and /128 hold one address, nothing else does."""
    assert is_single(ip_network("10.0.0.1/32"))
    assert is_single(ip_network("2001:db8::1/128"))
    assert not is_single(ip_network("10.0.0.0/31"))
    assert not is_single(ip_network("2001:db8::/32"))


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ("10.0.0.0/8", "10.1.0.0/16", True),
        ("10.0.0.0/8", "10.0.0.0/8", True),
        ("10.0.0.0/8", "10.0.0.0/7", False),
        ("10.0.0.0/8", "11.0.0.0/16", False),
        ("0.0.0.0/0", "::/0", False),
        ("::/0", "10.0.0.0/8", False),
        ("2001:db8::/32", "2001:db8::1/128", True),
    ],
)
def test_a_prefix_holds_those_of_its_family_that_lie_in_it(outer: str, inner: str, expected: bool) -> None:
    """Itself included, wider ones and those of the other family not."""
    assert holds(ip_network(outer), ip_network(inner)) is expected


def test_prefixes_are_sorted_by_family_address_and_width() -> None:
    """What holds others comes before them."""
    texts = ["2.0.0.0/8", "10.0.0.0/8", "10.0.0.0/16", "10.1.0.0/16", "::/0", "2001:db8::/32"]

    assert texts == [str(one) for one in sorted(map(ip_network, reversed(texts)), key=prefix_order)]


def test_an_address_with_a_port_has_brackets_if_it_is_ipv6() -> None:
    """As an address, and as a text."""
    assert host_port(IPv4Address("10.0.0.1"), 80) == host_port("10.0.0.1", 80) == "10.0.0.1:80"
    assert host_port(IPv6Address("fd00::1"), 80) == host_port("fd00::1", 80) == "[fd00::1]:80"


def test_the_first_of_a_family_is_found_among_both() -> None:
    """Of addresses and of prefixes; None where there is none."""
    mixed = [IPv6Address("fd00::1"), IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")]

    assert first_of(4, mixed) == IPv4Address("10.0.0.1")
    assert first_of(6, mixed) == IPv6Address("fd00::1")
    assert first_of(6, [ip_network("10.0.0.0/8")]) is None
