# SPDX-License-Identifier: Apache-2.0
"""
Where rows of services lead, and whom they let in, between two writes.

Rows are followed as ``lab.meaning`` does: none leads nowhere, whatever was written last.  Source ranges are
read here as ``lb_admits`` reads them, and held against what the documents of services say.
"""

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from typing import Any

from ciliumd import abi
from ciliumd.daemon import stages as names
from ciliumd.kubernetes import kinds
from ciliumd.model.net import addr_from16
from lab.kinds import SOURCES_POLICY
from lab.meaning import meaning
from property.churn.judge import Known

OF_SERVICES = frozenset(
    {
        *(names.BACKENDS, names.REVNAT, names.AFFINITY_MATCH, names.SOURCES, names.BIND),
        *(names.SERVICE_SLOTS, names.SERVICES),
    }
)
# In ranges that services name (``cluster.RANGES``), and in none.
CLIENTS = ("203.0.113.7", "203.0.113.200", "198.51.100.7", "192.0.2.77")

Rows = Mapping[str, Mapping[bytes, bytes]]


def lead_nowhere(maps: Rows) -> list[str]:
    """Rows that a packet of a service would be lost at."""
    found: dict[str, Any] = {name: maps.get(name, {}) for name in OF_SERVICES - {names.SERVICE_SLOTS}}
    found[names.SERVICES] = {**maps.get(names.SERVICE_SLOTS, {}), **maps.get(names.SERVICES, {})}
    return meaning(found).broken


def let_in(maps: Rows) -> Iterator[tuple[str, str]]:
    """Balancers' addresses and the clients that may ask there."""
    for packed, value in maps.get(names.SERVICES, {}).items():
        row = abi.LbService.unpack(value)
        if row.flags & abi.LbServiceFlags.LB_F_LOAD_BALANCER:
            address = str(addr_from16(abi.LbServiceKey.unpack(packed).addr))
            yield from ((address, one) for one in CLIENTS if _admits(row, maps.get(names.SOURCES, {}), one))


def _admits(row: abi.LbService, sources: Iterable[bytes], client: str) -> bool:
    flags = abi.LbServiceFlags
    policy = row.flags & (flags.LB_F_SOURCES_ALLOW | flags.LB_F_SOURCES_DENY)
    if not policy:
        return True
    keys = [abi.LbSourceKey.unpack(key) for key in sources]
    mine = [key for key in keys if (key.rev_nat, key.policy) == (row.rev_nat, policy)]
    # 32 bits in front of the address, of which IPv4 takes the last 32.
    networks = [ip_network((addr_from16(key.addr), key.prefixlen - 128)) for key in mine]
    listed = any(ip_address(client) in one for one in networks)
    return listed != (policy == flags.LB_F_SOURCES_DENY)


def may_ask(known: Known, address: str, client: str) -> bool:
    """Whether some service of these documents has *address* of a balancer and lets *client* in."""
    return any(
        _lets_in(document, client)
        for key, document in known.documents.items()
        if key[0] == kinds.SERVICE and address in _ingress(document)
    )


def _ingress(document: Mapping[str, Any]) -> list[str]:
    return [one["ip"] for one in document.get("status", {}).get("loadBalancer", {}).get("ingress", ())]


def _lets_in(document: Mapping[str, Any], client: str) -> bool:
    ranges = document["spec"].get("loadBalancerSourceRanges")
    if not ranges:
        return True
    denies = document["metadata"].get("annotations", {}).get(SOURCES_POLICY) == "deny"
    return any(ip_address(client) in ip_network(one) for one in ranges) != denies
