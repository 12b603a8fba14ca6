# SPDX-License-Identifier: Apache-2.0
"""Nodes and results the tests of this room speak of."""

from ipaddress import ip_address

from ciliumd.health.model import Check, NodeResult, PathResult, Target
from ciliumd.model.objects import NodeRow

AT = 1628674411.0
WELL = Check("", 0.000315254, AT)
SILENT = Check("Connection timed out", 0.0, AT)


def node(name, *addresses, cluster="default", health=()):
    """A node with InternalIPs."""
    return NodeRow(
        name,
        cluster,
        tuple(("InternalIP", ip_address(one)) for one in addresses),
        health=tuple(map(ip_address, health)),
    )


def target(name, *, cluster="default", host=("192.0.2.1",), endpoint=("10.0.0.7",)):
    """A node to probe."""
    return Target(name, cluster, tuple(map(ip_address, host)), tuple(map(ip_address, endpoint)))


def path(address, *, icmp=WELL, http=WELL):
    """Both probes of an address."""
    return PathResult(ip_address(address), icmp, http)


def result(name, *, host=WELL, endpoint=WELL, **changes):
    """What came of a node whose host and endpoint answered HTTP like this."""
    probed = target(name, **changes)
    return NodeResult(
        probed,
        tuple(path(one, http=host) for one in probed.host),
        tuple(path(one, http=endpoint) for one in probed.endpoint),
    )
