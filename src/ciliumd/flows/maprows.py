# SPDX-License-Identifier: Apache-2.0
"""
Rows of BPF maps as readable values: the body of ``GET /v1/map/{name}``.

Field names are those of the datapath ABI.  Addresses and MACs are text, enums and flags are names,
ports and identities are numbers, per-CPU values are summed; guards of recycled rows (``check``) are
left out.  Which rows a map holds is for the caller to read.
"""

from collections.abc import Iterable, Iterator
from dataclasses import fields
from enum import IntEnum
from ipaddress import IPv4Address
from typing import Any, Final

from ciliumd import abi
from ciliumd.flows.reasons import reason_text
from ciliumd.model.net import addr_from16, mac_str

Json = dict[str, Any]

PROTOCOLS: Final = {0: "ANY", 1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}

_NO_ADDRESS: Final = bytes(16)
_PREFIXES: Final = {
    abi.PolicyVerdict: "POLICY_VERDICT_",
    abi.Direction: "DIR_",
    abi.CtKind: "CT_KIND_",
    abi.CtFlags: "CT_F_",
    abi.LbScope: "LB_SCOPE_",
    abi.LbServiceFlags: "LB_F_",
    abi.LbClient: "LB_CLIENT_",
    abi.LbBackendState: "BACKEND_",
    abi.NatDir: "NAT_",
    abi.EndpointFlags: "ENDPOINT_F_",
    abi.NodeState: "NODE_STATE_",
    abi.EventLoss: "EVENT_LOSS_",
}
_ENUMS: Final[dict[tuple[str, str], type[IntEnum]]] = {
    ("PolicyClassKey", "direction"): abi.Direction,
    ("PolicyKey", "direction"): abi.Direction,
    ("PolicyEntry", "verdict"): abi.PolicyVerdict,
    ("CtKey", "kind"): abi.CtKind,
    ("LbServiceKey", "scope"): abi.LbScope,
    ("LbSourceKey", "policy"): abi.LbServiceFlags,
    ("LbAffinityKey", "kind"): abi.LbClient,
    ("LbBackend", "state"): abi.LbBackendState,
    ("NatKey", "dir"): abi.NatDir,
}
_FLAGS: Final[dict[tuple[str, str], type[IntEnum]]] = {
    ("Endpoint", "flags"): abi.EndpointFlags,
    ("CtEntry", "flags"): abi.CtFlags,
    ("LbService", "flags"): abi.LbServiceFlags,
}
# Said of few rows: 0 in all others, which are what they are without it.
_EXCEPTIONS: Final = frozenset({"judged", "judged_ipv4", "judged_ipv6"})
_PLAIN_KEYS: Final = {
    "cilium_ifindex_v1": "ifindex",
    "cilium_endpoints_v1": "slot",
    "cilium_endpoint_state_v1": "slot",
    "cilium_lb_backends_v1": "id",
    "cilium_lb_revnat_v1": "id",
    "cilium_devices_v1": "ifindex",
    "cilium_netns_v1": "cookie",
}
_PLAIN_VALUES: Final = {
    "cilium_ifindex_v1": "slot",
    "cilium_netns_v1": "slot",
    "cilium_event_losses_v1": "lost",
    "cilium_lb_source_range_v1": "listed",
}


class UnknownMapError(KeyError):
    """No map of the datapath has this name, or its rows cannot be read."""


def decode_rows(map_name: str, rows: Iterable[tuple[bytes, bytes]]) -> Iterator[Json]:
    """Decoded *rows* in order; empty rows of arrays are left out."""
    spec = _spec(map_name)
    is_array = spec.type in (abi.MapType.ARRAY, abi.MapType.PERCPU_ARRAY)
    for key, value in rows:
        if not is_array or any(value):
            yield decode_row(map_name, key, value)


def decode_row(map_name: str, key: bytes, value: bytes) -> Json:
    """
    One row as ``{"key": {...}, "value": {...}}``.

    *value* of a per-CPU map is every CPU's value end to end, as the kernel returns it.  *key* of a
    map of maps is the outer key followed by the inner one.
    """
    spec = _spec(map_name)
    if spec.inner is not None:
        version, inner = int.from_bytes(key[: spec.key_size], "little"), spec.inner
        decoded = _struct(inner.key_struct, key[spec.key_size :], inner.name)
        return {
            "key": {"version": version, **decoded},
            "value": _struct(inner.value_struct, value, inner.name),
        }
    return {"key": _key(spec, key), "value": _value(spec, value)}


def readable(map_name: str) -> bool:
    """Whether the rows of *map_name* can be read and decoded."""
    spec = abi.MAPS.get(map_name)
    return spec is not None and spec.type not in (abi.MapType.PROG_ARRAY, abi.MapType.RINGBUF)


def _spec(map_name: str) -> abi.MapSpec:
    if not readable(map_name):
        raise UnknownMapError(map_name)
    return abi.MAPS[map_name]


def _key(spec: abi.MapSpec, key: bytes) -> Json:
    if spec.key_struct is not None:
        return _struct(spec.key_struct, key, spec.name)
    number = int.from_bytes(key, "little")
    match spec.name:
        case "cilium_metrics_v1":
            reason, direction = divmod(number, abi.Direction.DIR_MAX.value)
            return {
                "reason": reason,
                "reason_text": reason_text(reason),
                "direction": _enum(abi.Direction, direction),
            }
        case "cilium_node_state_v1":
            return {"row": _enum(abi.NodeState, number)}
        case "cilium_event_losses_v1":
            return {"row": _enum(abi.EventLoss, number)}
        case name:
            return {_PLAIN_KEYS.get(name, "key"): number}


def _value(spec: abi.MapSpec, value: bytes) -> Json:
    if spec.type in (abi.MapType.PERCPU_ARRAY, abi.MapType.PERCPU_HASH, abi.MapType.LRU_PERCPU_HASH):
        return _summed(spec, value)
    if spec.value_struct is not None:
        return _struct(spec.value_struct, value, spec.name)
    number = int.from_bytes(value, "little")
    if spec.name == "cilium_endpoint_state_v1":
        return {"slot_gen": number >> 32, "policy_version": number & 0xFFFFFFFF}
    return {_PLAIN_VALUES.get(spec.name, "value"): number}


def _summed(spec: abi.MapSpec, value: bytes) -> Json:
    # The kernel rounds each CPU's value up to 8 bytes.
    stride = -(-spec.value_size // 8) * 8
    if not value or len(value) % stride:
        raise ValueError(
            f"{len(value)} bytes are no whole number of per-CPU values of {spec.name} ({stride} each)"
        )
    parts = [value[start : start + spec.value_size] for start in range(0, len(value), stride)]
    if spec.value_struct is None:
        return {_PLAIN_VALUES.get(spec.name, "value"): sum(int.from_bytes(part, "little") for part in parts)}
    rows = [_struct(spec.value_struct, part, spec.name) for part in parts]
    return {name: sum(row[name] for row in rows) for name in rows[0]}


def _struct(struct: type[abi.Row] | None, data: bytes, map_name: str) -> Json:
    if struct is None:
        raise UnknownMapError(map_name)
    row: Any = struct.unpack(data)
    out: Json = {}
    for field in fields(row):
        value = getattr(row, field.name)
        if field.name != "check" and (value or field.name not in _EXCEPTIONS):
            out[field.name] = _field(struct.__name__, field.name, value)
    if struct is abi.CtEntry and row.policy_version & abi.CtVersion.CT_VERSION_AUDITED:
        out["policy_version"] = row.policy_version & ~abi.CtVersion.CT_VERSION_AUDITED
        out["flags"].append("audited")
    if struct is abi.IpcacheLpmKey:
        return {"prefix": _prefix(row), "cluster_id": row.cluster_id}
    if struct is abi.LbSourceKey:
        return {"prefix": _prefix(row), "rev_nat": row.rev_nat, "policy": out["policy"]}
    return out


def _field(struct: str, name: str, value: Any) -> Any:
    enum = _ENUMS.get((struct, name))
    if enum is not None:
        return _enum(enum, value)
    flags = _FLAGS.get((struct, name))
    if flags is not None:
        return [_enum(flags, member.value) for member in flags if value & member.value]
    if name == "protocol":
        return PROTOCOLS.get(value, str(value))
    return _bytes(value) if isinstance(value, bytes) else _number(name, value)


def _bytes(value: bytes) -> str:
    if len(value) == len(_NO_ADDRESS):
        return "" if value == _NO_ADDRESS else str(addr_from16(value))
    return mac_str(value) if len(value) == 6 else value.hex()


def _number(name: str, value: Any) -> Any:
    if name == "ipv4":
        return str(IPv4Address(value)) if value else ""
    return "host" if name == "slot" and value == abi.Slot.SLOT_HOST else value


def _enum(enum: type[IntEnum], value: int) -> str:
    return _NAMES[enum].get(value, str(value))


_NAMES: Final[dict[type[IntEnum], dict[int, str]]] = {
    enum: {m.value: m.name.removeprefix(prefix).lower().replace("_", "-") for m in enum}
    for enum, prefix in _PREFIXES.items()
}


def _prefix(key: abi.IpcacheLpmKey | abi.LbSourceKey) -> str:
    # The stored length counts 32 bits in front of the address, and an IPv4 prefix lies behind 96 mapped ones.
    address = addr_from16(key.addr)
    bits = key.prefixlen - 32
    return f"{address}/{bits - 96 if address.version == 4 else bits}"
