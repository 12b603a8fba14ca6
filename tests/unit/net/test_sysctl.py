# SPDX-License-Identifier: Apache-2.0
"""Ports are kept from sockets that name none, and what others have reserved stays theirs."""

import pytest

from ciliumd.net import sysctl
from ciliumd.net.errors import NetError

CHOSEN, RESERVED = "ip_local_port_range", "ip_local_reserved_ports"


@pytest.fixture
def node(tmp_path, monkeypatch):
    """The directory of a node's settings."""
    monkeypatch.setattr(sysctl._Where, "root", tmp_path)
    path = tmp_path / "ipv4"
    path.mkdir()
    (path / CHOSEN).write_text("32768\t60999\n")
    (path / RESERVED).write_text("\n")
    return path


@pytest.mark.parametrize(
    ("first", "last", "before", "after"),
    [
        (30000, 32767, "", None),
        (30000, 32768, "", "30000-32768"),
        (40000, 40100, "8080,9148", "8080,9148,40000-40100"),
        (40000, 40100, "8080,40000-40050", "8080,40000-40050,40000-40100"),
        (40000, 40100, "39000-41000", None),
        (30000, 32770, "32768-32770", None),
        (60990, 61010, "60990-60999", None),
    ],
)
def test_ports_that_could_be_given_are_reserved(node, first, last, before, after):
    """What is reserved already, or never given, is left alone; a second time changes nothing."""
    (node / RESERVED).write_text(before)
    assert sysctl.reserve_ports(first, last) == (after is not None)
    assert (node / RESERVED).read_text() == (before if after is None else after)
    assert not sysctl.reserve_ports(first, last)


def test_setting_that_is_not_there_is_told(node):
    """By its path."""
    (node / RESERVED).unlink()
    with pytest.raises(NetError, match=RESERVED):
        sysctl.reserve_ports(30000, 32768)
