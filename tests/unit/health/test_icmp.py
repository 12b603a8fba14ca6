# SPDX-License-Identifier: Apache-2.0
"""Echo requests as they are on the wire, and which packets count as their answers."""

import pytest

from ciliumd.health import icmp


def reply(identifier=7, kind=0, header=b"\x45" + bytes(19)):
    """An IPv4 packet with an ICMP message."""
    return header + bytes([kind, 0, 0, 0]) + identifier.to_bytes(2, "big") + bytes(2) + b"nonce"


def test_a_request_is_an_echo_with_a_right_checksum():
    """RFC 792 by a message worked out by hand."""
    packet = icmp.echo_request(1, 2, b"\x03")

    assert packet[:2] == b"\x08\x00"
    assert packet[4:] == b"\x00\x01\x00\x02\x03"
    # 0x0800 + 0x0001 + 0x0002 + 0x0300 = 0x0b03
    assert int.from_bytes(packet[2:4], "big") == 0xFFFF - 0x0B03
    assert icmp.checksum(packet) == 0


def test_the_checksum_carries_around():
    """RFC 1071, section 3, the example there."""
    assert icmp.checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2


@pytest.mark.parametrize(
    ("packet", "ours"),
    [
        (reply(), True),
        (reply(identifier=8), False),
        (reply(kind=8), False),
        (reply(header=b"\x46" + bytes(23)), True),
        (b"", False),
        (b"\x45" + bytes(22), False),
    ],
)
def test_only_replies_to_us_count(packet, ours):
    """Options in the IP header are skipped; what is cut off is nobody's."""
    assert icmp.is_reply(packet, 7) is ours


def test_ipv6_has_numbers_of_its_own_and_no_header_in_front():
    """RFC 4443 4.1 and 4.2; the kernel fills in the checksum, which covers addresses."""
    packet = icmp.echo_request(1, 2, b"\x03", version=6)
    assert packet == b"\x80\x00\x00\x00\x00\x01\x00\x02\x03"
    answer = b"\x81" + packet[1:]
    assert icmp.is_reply(answer, 1, version=6)
    assert not icmp.is_reply(answer, 2, version=6)
    assert not icmp.is_reply(packet, 1, version=6)
    assert not icmp.is_reply(b"", 1, version=6)
