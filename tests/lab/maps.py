# SPDX-License-Identifier: Apache-2.0
"""
The pinned maps of a node, read and spoiled by hand.

For comparing what the kernel holds before and after, and for breaking it on purpose: a test that
can only succeed proves nothing.
"""

from contextlib import suppress
from pathlib import Path

from ciliumd import abi
from ciliumd.bpf.errors import NotFound
from ciliumd.bpf.link import Link
from ciliumd.bpf.map import Map

# What packets and time change, and what differs between generations by design.
LIVELY = frozenset(
    {
        "cilium_ct_v1",
        "cilium_snat_v1",
        "cilium_lb_sock_v1",
        "cilium_lb_affinity_v1",
        "cilium_frags_v1",
        "cilium_metrics_v1",
        "cilium_events_v1",
        "cilium_event_losses_v1",
        "cilium_hooks_v1",
        "cilium_node_state_v1",
    }
)
INNER = ("cilium_policy_classes_v1", "cilium_policy_rules_v1")
DENYING = frozenset({abi.PolicyVerdict.POLICY_VERDICT_DENY, abi.PolicyVerdict.POLICY_VERDICT_DEFAULT_DENY})

Dump = dict[str, dict[bytes, object]]


def dump(bpf_root: Path) -> Dump:
    """Every row of every state map, policies with their inner rows; counters and flows aside."""
    rows: Dump = {}
    for pin in sorted((bpf_root / "maps").iterdir()):
        if pin.name in LIVELY:
            continue
        with Map.from_pin(pin) as opened:
            if pin.name in INNER:
                rows[pin.name] = {}
                versions = [key for key, _ in opened.items()]
                for version in versions:
                    with suppress(NotFound), opened.open_inner(version) as inner:
                        rows[pin.name][version] = dict(inner.items())
            else:
                # Rows of arrays that were never written are not worth a line in a difference.
                rows[pin.name] = {key: value for key, value in opened.items() if any(value)}
    return rows


def differences(before: Dump, after: Dump) -> list[str]:
    """Rows that are not the same, one line each."""
    return [
        f"{name} {key.hex()}: {_text(old.get(key))} -> {_text(new.get(key))}"
        for name in sorted(before.keys() | after.keys())
        for old, new in [(before.get(name, {}), after.get(name, {}))]
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _text(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def delete_deny_row(bpf_root: Path, version: int, port: int) -> bytes:
    """Take the row of a policy version away that denies a port; the row's key."""
    with (
        Map.from_pin(bpf_root / "maps" / "cilium_policy_rules_v1") as versions,
        versions.open_inner(version.to_bytes(4, "little")) as rules,
    ):
        for key, value in list(rules.items()):
            row, entry = abi.PolicyKey.unpack(key), abi.PolicyEntry.unpack(value)
            ingress = row.direction == abi.Direction.DIR_INGRESS
            if row.dport == port and ingress and entry.verdict in DENYING:
                assert rules.delete(key)
                return key
    raise LookupError(f"policy version {version} has no row that denies port {port}")


def link_pins(bpf_root: Path, ifindex: int | None = None) -> list[Path]:
    """Pins of links: all, or those of one device."""
    pins = sorted((bpf_root / "links").iterdir())
    if ifindex is None:
        return pins
    return [pin for pin in pins if f"_{ifindex}_" in f"_{pin.name}_"]


def detach(pins: list[Path]) -> None:
    """Detach links by hand and remove their pins."""
    for pin in pins:
        with Link.from_pin(pin) as link:
            # In this order: an agent that looks in between takes the pin of a detached link away itself.
            pin.unlink()
            link.detach()
