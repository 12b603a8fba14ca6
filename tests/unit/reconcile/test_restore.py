# SPDX-License-Identifier: Apache-2.0
"""Numbers come back from live maps exactly as they were."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from ciliumd import abi
from ciliumd.model.net import addr16, mac_bytes, prefix_bits16
from ciliumd.model.service import BackendKey, FrontendKey
from ciliumd.reconcile import restore

SERVICE = ip_address("10.96.0.10")
BACKEND = ip_address("10.1.0.5")


def u32(value):
    """A packed u32, as keys of arrays are."""
    return value.to_bytes(4, "little")


def service_row(slot, *, port=53, protocol=17, rev_nat=7):
    """A row of cilium_lb_services."""
    key = abi.LbServiceKey(addr=addr16(SERVICE), port=port, protocol=protocol, scope=0, slot=slot)
    return key.pack(), abi.LbService(target=1, rev_nat=rev_nat, flags=1, affinity_timeout=0).pack()


def ipcache_value(identity):
    """A value of both ipcache maps."""
    return abi.IpcacheEntry(
        check=0, identity=identity, tunnel_endpoint=bytes(16), encrypt_key=0, flags=0, judged=0
    ).pack()


def lpm_row(prefix, identity):
    """A row of cilium_ipcache_lpm."""
    network = ip_network(prefix)
    key = abi.IpcacheLpmKey(
        prefixlen=32 + prefix_bits16(network), cluster_id=0, addr=addr16(network.network_address)
    )
    return key.pack(), ipcache_value(identity)


def endpoint_row(slot_gen, **changes):
    """A value of cilium_endpoints."""
    facts = {
        "identity": 4711,
        "id": 42,
        "flags": 0,
        "ifindex": 9,
        "slot_gen": slot_gen,
        "ipv4": int(BACKEND),
        "ipv6": bytes(16),
        "mac": mac_bytes("02:00:00:00:00:01"),
        "node_mac": mac_bytes("02:00:00:00:00:02"),
        "judged_ipv4": 0,
        "judged_ipv6": 0,
    }
    return abi.Endpoint(**{**facts, **changes}).pack()


def test_service_ids_come_from_slot_zero_of_every_frontend():
    """One id per frontend; backend slots and unknown protocols say nothing."""
    rows = dict([service_row(0), service_row(1), service_row(0, protocol=6, rev_nat=8)])
    rows.update([service_row(0, protocol=99, rev_nat=9)])

    assert {FrontendKey(SERVICE, 53, "UDP", 0): 7, FrontendKey(SERVICE, 53, "TCP", 0): 8} == (
        restore.service_ids(rows)
    )


def test_backend_ids_come_back():
    """The lower of two ids of one backend stays, so that every restart decides alike."""
    rows = {
        u32(number): abi.LbBackend(id=number, port=8080, protocol=6, state=0, addr=addr16(BACKEND)).pack()
        for number in (5, 3, 9)
    }

    assert {BackendKey(BACKEND, 8080, "TCP"): 3} == restore.backend_ids(rows)


def test_endpoint_comes_back_with_its_generation_and_policy_version():
    """The state word and the facts together are the endpoint."""
    states = {u32(3): ((17 << 32) | 99).to_bytes(8, "little"), u32(4): bytes(8)}
    live = restore.endpoints({u32(3): endpoint_row(17), u32(4): endpoint_row(2)}, states)

    assert {
        3: restore.LiveEndpoint(
            slot=3,
            slot_gen=17,
            policy_version=99,
            id=42,
            identity=4711,
            ifindex=9,
            ipv4=IPv4Address("10.1.0.5"),
            ipv6=None,
            mac="02:00:00:00:00:01",
            node_mac="02:00:00:00:00:02",
        )
    } == live


def test_slot_whose_facts_are_of_another_generation_is_no_endpoint():
    """An agent that died between facts and state word leaves nothing to believe in."""
    states = {u32(3): ((17 << 32) | 99).to_bytes(8, "little")}

    assert {} == restore.endpoints({u32(3): endpoint_row(16)}, states)


def test_identities_of_addresses_and_prefixes_come_back():
    """Cluster identities by address; local ones by prefix, from both maps, IPv4 and IPv6."""
    single = abi.IpcacheKey(addr=addr16(BACKEND), cluster_id=0).pack()
    local = abi.IpcacheKey(addr=addr16(ip_address("192.0.2.7")), cluster_id=0).pack()
    other = abi.IpcacheKey(addr=addr16(ip_address("2001:db8::1")), cluster_id=0).pack()
    ipcache = {
        single: ipcache_value(4711),
        local: ipcache_value(1 << 24),
        other: ipcache_value(2),
    }
    lpm = dict(
        [
            lpm_row("0.0.0.0/0", 2),
            lpm_row("198.51.100.0/24", (1 << 24) + 1),
            lpm_row("2001:db8::/32", (1 << 24) + 2),
        ]
    )

    assert {BACKEND: 4711, ip_address("192.0.2.7"): 1 << 24, IPv6Address("2001:db8::1"): 2} == (
        restore.identities(ipcache)
    )
    assert {
        ip_network("192.0.2.7/32"): 1 << 24,
        ip_network("198.51.100.0/24"): (1 << 24) + 1,
        ip_network("2001:db8::/32"): (1 << 24) + 2,
    } == restore.prefixes(ipcache, lpm)
