# SPDX-License-Identifier: Apache-2.0
"""What runtimes are answered: word for word what each version of the specification says."""

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from ciliumd.cni.errors import CniError, Code
from ciliumd.cni.request import VERSIONS
from ciliumd.cni.result import Attached, differences, encoded, failure, success

MADE = Attached(
    host_ifname="lxc0123456789ab",
    host_mac="02:00:00:00:00:02",
    ifname="eth0",
    mac="02:00:00:00:00:01",
    sandbox="/var/run/netns/cni-1",
    address=IPv4Address("10.0.0.7"),
    router=IPv4Address("10.0.0.1"),
    mtu=1500,
    route_mtu=1450,
)
OLD = {
    "interfaces": [
        {"name": "lxc0123456789ab", "mac": "02:00:00:00:00:02"},
        {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/var/run/netns/cni-1"},
    ],
    "ips": [{"version": "4", "address": "10.0.0.7/32", "gateway": "10.0.0.1", "interface": 1}],
    "routes": [{"dst": "10.0.0.1/32"}, {"dst": "0.0.0.0/0", "gw": "10.0.0.1"}],
    "dns": {},
}
WITHOUT_VERSION = {"ips": [{"address": "10.0.0.7/32", "gateway": "10.0.0.1", "interface": 1}]}
WITH_MTU = {
    "interfaces": [
        {"name": "lxc0123456789ab", "mac": "02:00:00:00:00:02", "mtu": 1500},
        {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/var/run/netns/cni-1", "mtu": 1500},
    ],
    "routes": [{"dst": "10.0.0.1/32"}, {"dst": "0.0.0.0/0", "gw": "10.0.0.1", "mtu": 1450}],
}
GOLDEN = {
    "0.3.0": OLD,
    "0.3.1": OLD,
    "0.4.0": OLD,
    "1.0.0": OLD | WITHOUT_VERSION,
    "1.1.0": OLD | WITHOUT_VERSION | WITH_MTU,
}


@pytest.mark.parametrize("version", VERSIONS)
def test_results_are_those_of_the_version_asked_for(version):
    """0.x names the address family, 1.0 does not, 1.1 adds MTUs."""
    assert success(MADE, version) == {"cniVersion": version, **GOLDEN[version]}


SIX = {
    "0.4.0": {"version": "6", "address": "fd00::7/128", "gateway": "fd00::1", "interface": 1},
    "1.0.0": {"address": "fd00::7/128", "gateway": "fd00::1", "interface": 1},
}


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
def test_both_families_are_answered_ipv4_first(version):
    """Its own address, gateway and routes behind those of IPv4."""
    both = replace(MADE, address6=IPv6Address("fd00::7"), router6=IPv6Address("fd00::1"))
    told, four = success(both, version), GOLDEN[version]
    default = {"dst": "::/0", "gw": "fd00::1"} | ({"mtu": 1450} if version == "1.1.0" else {})
    assert told["ips"] == [*four["ips"], SIX.get(version, SIX["1.0.0"])]
    assert told["routes"] == [*four["routes"], {"dst": "fd00::1/128"}, default]
    assert told["interfaces"] == four["interfaces"]
    assert differences(told, both) == []
    (missing,) = differences(success(MADE, version), both)
    assert "fd00::7/128" in missing


def test_errors_have_code_message_and_details():
    """Details only where there are some."""
    assert failure(CniError(Code.CHECK_FAILED, "gone"), "1.0.0") == {
        "cniVersion": "1.0.0",
        "code": 102,
        "msg": "gone",
    }
    told = failure(CniError(Code.INCOMPATIBLE_VERSION, "no", details="supported: 0.3.0"), "1.1.0")
    assert told == {"cniVersion": "1.1.0", "code": 1, "msg": "no", "details": "supported: 0.3.0"}


def test_what_has_no_result_prints_nothing():
    """DEL, CHECK, STATUS and GC."""
    assert encoded(None) == b""
    assert json.loads(encoded(success(MADE, "1.1.0")))["cniVersion"] == "1.1.0"


@pytest.mark.parametrize("version", VERSIONS)
def test_its_own_result_differs_in_nothing(version):
    """Whatever the version of the ADD."""
    assert differences(success(MADE, version), MADE) == []


def test_what_others_of_the_chain_added_is_no_difference():
    """Plugins behind us append to the result."""
    longer = success(MADE, "1.0.0")
    longer["interfaces"].append({"name": "tap0"})
    longer["ips"].append({"address": "192.0.2.1/24"})
    longer["routes"] = []
    assert differences(longer, MADE) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"mac": "02:00:00:00:00:99"}, "no device eth0 with MAC address 02:00:00:00:00:99"),
        ({"host_ifname": "lxcother"}, "no device lxcother"),
        ({"address": IPv4Address("10.0.0.8")}, "has address 10.0.0.7/32, the pod 10.0.0.8/32"),
    ],
)
def test_differences_are_named(change, text):
    """What the pod has now and the runtime does not know."""
    (found,) = differences(success(MADE, "1.0.0"), replace(MADE, **change))
    assert text in found


@pytest.mark.parametrize(
    "previous", [{"interfaces": [7]}, {"interfaces": [{}]}, {"ips": ["10.0.0.7"]}, {"ips": 3}]
)
def test_a_result_that_cannot_be_read_is_a_bad_configuration(previous):
    """Code 7."""
    with pytest.raises(CniError, match="prevResult") as caught:
        differences(previous, MADE)
    assert caught.value.code is Code.INVALID_CONFIG


def test_pod_without_ipv4_has_one_address_and_its_routes():
    """Runtimes take the first address for the pod's."""
    six = replace(
        MADE, address=None, router=None, address6=IPv6Address("fd00::7"), router6=IPv6Address("fd00::1")
    )
    told = success(six, "1.0.0")
    assert told["ips"] == [{"address": "fd00::7/128", "gateway": "fd00::1", "interface": 1}]
    assert told["routes"] == [{"dst": "fd00::1/128"}, {"dst": "::/0", "gw": "fd00::1"}]
    assert differences(told, six) == []
    assert differences(success(MADE, "1.0.0"), six)
