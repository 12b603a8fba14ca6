# SPDX-License-Identifier: Apache-2.0
"""Addresses a node depends on, as its own files and options name them."""

from ipaddress import ip_address

import pytest

from ciliumd.daemon.protected import API_SERVER, RESOLVER, protected_addresses, resolvers

RESOLV_CONF = """
# nameserver 192.0.2.1
search example.org
nameserver 192.0.2.53
nameserver   fe80::1%eth0
nameserver
nameserver nonsense
options edns0
"""


def test_name_servers_are_read_and_the_rest_is_not(tmp_path):
    """resolv.conf(5): one address in a line; zones are of this node alone."""
    path = tmp_path / "resolv.conf"
    path.write_text(RESOLV_CONF)

    assert resolvers(path) == (ip_address("192.0.2.53"), ip_address("fe80::1"))
    assert resolvers(tmp_path / "none") == ()


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("https://192.0.2.100:6443", {"192.0.2.100"}),
        ("https://[2001:db8::100]:6443", {"2001:db8::100"}),
        ("", set()),
    ],
)
def test_api_server_is_known_by_its_url(tmp_path, url, addresses):
    """An address needs nobody to resolve it."""
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 192.0.2.53\n")

    found = protected_addresses(url, path)
    assert {str(addr) for addr, owner in found if owner == API_SERVER} == addresses
    assert [(str(addr), owner) for addr, owner in found if owner == RESOLVER] == [("192.0.2.53", RESOLVER)]


def test_api_server_known_by_a_name_is_resolved(tmp_path):
    """And one that cannot be, here for its length, is no reason not to start."""
    assert ip_address("127.0.0.1") in dict(protected_addresses("https://localhost:6443", tmp_path / "none"))
    assert protected_addresses(f"https://{'a' * 64}.example.org", tmp_path / "none") == ()
