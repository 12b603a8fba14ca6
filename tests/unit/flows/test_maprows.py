# SPDX-License-Identifier: Apache-2.0
"""Rows of every map read as values a person and a script can use."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from ciliumd import abi
from ciliumd.flows.maprows import UnknownMapError, decode_row, decode_rows, readable
from ciliumd.model.net import addr16, mac_bytes

POD, PEER, SERVICE = (addr16(ip_address(text)) for text in ("10.0.0.1", "10.0.0.2", "10.96.0.10"))
NOWHERE = bytes(16)


def u32(*numbers):
    """Little-endian words."""
    return b"".join(number.to_bytes(4, "little") for number in numbers)


def u64(*numbers):
    """Little-endian double words."""
    return b"".join(number.to_bytes(8, "little") for number in numbers)


ROWS = [
    (
        "cilium_lxc_v1",
        abi.LxcKey(addr=POD).pack(),
        abi.LxcValue(check=7, slot=3).pack(),
        {"addr": "10.0.0.1"},
        {"slot": 3},
    ),
    (
        "cilium_lxc_v1",
        abi.LxcKey(addr=POD).pack(),
        abi.LxcValue(check=7, slot=0xFFFFFFFF).pack(),
        {"addr": "10.0.0.1"},
        {"slot": "host"},
    ),
    ("cilium_ifindex_v1", u32(7), u32(3), {"ifindex": 7}, {"slot": 3}),
    (
        "cilium_endpoints_v1",
        u32(3),
        abi.Endpoint(
            identity=256,
            id=12,
            flags=1,
            ifindex=7,
            slot_gen=5,
            ipv4=0x0A000001,
            ipv6=NOWHERE,
            mac=mac_bytes("02:00:00:00:00:01"),
            node_mac=mac_bytes("02:00:00:00:00:02"),
            judged_ipv4=3 << 24,
            judged_ipv6=0,
        ).pack(),
        {"slot": 3},
        {
            "identity": 256,
            "id": 12,
            "flags": ["audit"],
            "ifindex": 7,
            "slot_gen": 5,
            "ipv4": "10.0.0.1",
            "ipv6": "",
            "mac": "02:00:00:00:00:01",
            "node_mac": "02:00:00:00:00:02",
            "judged_ipv4": 3 << 24,
        },
    ),
    ("cilium_endpoint_state_v1", u32(3), u32(9, 5), {"slot": 3}, {"slot_gen": 5, "policy_version": 9}),
    (
        "cilium_ipcache_v1",
        abi.IpcacheKey(addr=PEER, cluster_id=0).pack(),
        abi.IpcacheEntry(
            check=1, identity=257, tunnel_endpoint=NOWHERE, encrypt_key=0, flags=0, judged=3 << 24
        ).pack(),
        {"addr": "10.0.0.2", "cluster_id": 0},
        {"identity": 257, "tunnel_endpoint": "", "encrypt_key": 0, "flags": 0, "judged": 3 << 24},
    ),
    (
        "cilium_ipcache_lpm_v1",
        abi.IpcacheLpmKey(prefixlen=32 + 96 + 8, cluster_id=0, addr=addr16(ip_address("10.0.0.0"))).pack(),
        abi.IpcacheEntry(
            check=0, identity=1 << 24, tunnel_endpoint=PEER, encrypt_key=3, flags=0, judged=0
        ).pack(),
        {"prefix": "10.0.0.0/8", "cluster_id": 0},
        {"identity": 1 << 24, "tunnel_endpoint": "10.0.0.2", "encrypt_key": 3, "flags": 0},
    ),
    (
        "cilium_policy_rules_v1",
        u32(9) + abi.PolicyKey(prefixlen=48, class_id=1, direction=1, protocol=6, dport=80).pack(),
        abi.PolicyEntry(verdict=3, flags=0, proxy_slot=0, rule_cookie=77, check=0).pack(),
        {
            "version": 9,
            "prefixlen": 48,
            "class_id": 1,
            "direction": "ingress",
            "protocol": "TCP",
            "dport": 80,
        },
        {"verdict": "default-deny", "flags": 0, "proxy_slot": 0, "rule_cookie": 77},
    ),
    (
        "cilium_policy_classes_v1",
        u32(9) + abi.PolicyClassKey(identity=256, direction=2).pack(),
        abi.PolicyClass(check=1, class_id=4).pack(),
        {"version": 9, "identity": 256, "direction": "egress"},
        {"class_id": 4},
    ),
    (
        "cilium_ct_v1",
        abi.CtKey(local=POD, remote=PEER, local_port=1234, remote_port=80, protocol=6, kind=1, zone=0).pack(),
        abi.CtEntry(
            check=1,
            policy_version=9,
            peer_identity=257,
            rule_cookie=0,
            expires=100,
            last_report=90,
            rev_nat=3,
            flags=0x22,
            backend_id=5,
            tcp_flags_local=2,
            tcp_flags_remote=0x12,
            proxy_slot=0,
        ).pack(),
        {
            "local": "10.0.0.1",
            "remote": "10.0.0.2",
            "local_port": 1234,
            "remote_port": 80,
            "protocol": "TCP",
            "kind": "service",
            "zone": 0,
        },
        {
            "policy_version": 9,
            "peer_identity": 257,
            "rule_cookie": 0,
            "expires": 100,
            "last_report": 90,
            "rev_nat": 3,
            "flags": ["seen-reply", "seen-non-syn"],
            "backend_id": 5,
            "tcp_flags_local": 2,
            "tcp_flags_remote": 0x12,
            "proxy_slot": 0,
        },
    ),
    (
        "cilium_lb_services_v1",
        abi.LbServiceKey(addr=SERVICE, port=53, protocol=17, scope=1, slot=2).pack(),
        abi.LbService(target=5, rev_nat=3, flags=0x21, affinity_timeout=10800).pack(),
        {"addr": "10.96.0.10", "port": 53, "protocol": "UDP", "scope": "internal", "slot": 2},
        {"target": 5, "rev_nat": 3, "flags": ["cluster-ip", "affinity"], "affinity_timeout": 10800},
    ),
    (
        "cilium_lb_backends_v1",
        u32(5),
        abi.LbBackend(id=5, port=8080, protocol=6, state=1, addr=PEER).pack(),
        {"id": 5},
        {"id": 5, "port": 8080, "protocol": "TCP", "state": "terminating", "addr": "10.0.0.2"},
    ),
    (
        "cilium_lb_revnat_v1",
        u32(3),
        abi.LbRevnat(id=3, port=53, addr=SERVICE).pack(),
        {"id": 3},
        {"id": 3, "port": 53, "addr": "10.96.0.10"},
    ),
    (
        "cilium_snat_v1",
        abi.NatKey(src=POD, dst=PEER, sport=1234, dport=80, protocol=6, dir=1, zone=0).pack(),
        abi.NatEntry(check=1, port=40000, flags=0, addr=SERVICE, created=50).pack(),
        {
            "src": "10.0.0.1",
            "dst": "10.0.0.2",
            "sport": 1234,
            "dport": 80,
            "protocol": "TCP",
            "dir": "in",
            "zone": 0,
        },
        {"port": 40000, "flags": 0, "addr": "10.96.0.10", "created": 50},
    ),
    (
        "cilium_metrics_v1",
        u32(133 * 4 + 1),
        u64(2, 120, 3, 200),
        {"reason": 133, "reason_text": "Policy denied", "direction": "ingress"},
        {"packets": 5, "bytes": 320},
    ),
    ("cilium_event_losses_v1", u32(0), u64(2, 3, 4), {"row": "ring-full"}, {"lost": 9}),
    ("cilium_node_state_v1", u32(1), u64(42), {"row": "next-policy-version"}, {"value": 42}),
]


@pytest.mark.parametrize(("name", "key", "value", "want_key", "want_value"), ROWS)
def test_row_reads_as_values(name, key, value, want_key, want_value):
    """Addresses as text, enums and flags as names, per-CPU values as sums, no guards."""
    assert decode_row(name, key, value) == {"key": want_key, "value": want_value}


def test_a_row_that_only_audit_let_through_says_so():
    """The version is that of the policy that would have dropped it."""
    name, key, value, _, plain = next(row for row in ROWS if row[0] == "cilium_ct_v1")
    audited = replace(abi.CtEntry.unpack(value), policy_version=9 | abi.CtVersion.CT_VERSION_AUDITED)

    found = decode_row(name, key, audited.pack())["value"]

    assert found == plain | {"flags": [*plain["flags"], "audited"]}


def test_every_readable_map_decodes_with_named_fields():
    """A map added later must decode, and say what its plain integers are."""
    for name, spec in abi.MAPS.items():
        if not name.startswith("cilium_") or not readable(name):
            continue
        key_size = spec.key_size + (spec.inner.key_size if spec.inner else 0)
        value_size = spec.inner.value_size if spec.inner else spec.value_size
        row = decode_row(name, bytes(key_size), bytes(value_size))
        assert row["key"], name
        assert "key" not in row["key"], name


def test_empty_rows_of_arrays_are_left_out():
    """4096 slots of which two are used list two."""
    rows = [(u32(slot), u64(5 << 32 | 9) if slot in {3, 8} else bytes(8)) for slot in range(10)]

    assert [row["key"]["slot"] for row in decode_rows("cilium_endpoint_state_v1", rows)] == [3, 8]


def test_zero_values_of_hashes_are_kept():
    """In a hash a row exists because somebody wrote it."""
    assert len(list(decode_rows("cilium_ifindex_v1", [(u32(7), u32(0))]))) == 1


def test_numbers_without_a_name_stay_numbers():
    """A newer datapath's protocol, verdict or reason is shown, not hidden."""
    key = u32(1) + abi.PolicyKey(prefixlen=32, class_id=0, direction=9, protocol=200, dport=0).pack()
    row = decode_row(
        "cilium_policy_rules_v1",
        key,
        abi.PolicyEntry(verdict=8, flags=0, proxy_slot=0, rule_cookie=0, check=0).pack(),
    )

    assert (row["key"]["direction"], row["key"]["protocol"], row["value"]["verdict"]) == ("9", "200", "8")


@pytest.mark.parametrize("name", ["cilium_nothing_v1", "cilium_events_v1", "cilium_hooks_v1"])
def test_maps_without_rows_are_refused(name):
    """Unknown names, ring buffers and program arrays have no rows to show."""
    assert not readable(name)
    with pytest.raises(UnknownMapError):
        decode_row(name, b"", b"")


def test_torn_per_cpu_value_is_refused():
    """A value that is no whole number of CPUs is a caller's mistake, not a smaller sum."""
    with pytest.raises(ValueError, match="per-CPU"):
        decode_row("cilium_metrics_v1", u32(0), bytes(20))


def test_a_row_whose_text_is_damaged_is_shown_as_it_is():
    """What no agent wrote is a difference, not an exception; and it is written again byte by byte."""
    key, value = b"map\xff".ljust(32, b"\0"), b"\xfe{}".ljust(1024, b"\0")
    row = decode_row("cilium_layout_v1", key, value)
    assert row["key"]["name"].encode(errors="surrogateescape") == b"map\xff"
    assert (abi.LayoutKey.unpack(key).pack(), abi.LayoutValue.unpack(value).pack()) == (key, value)
