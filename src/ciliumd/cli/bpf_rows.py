# SPDX-License-Identifier: Apache-2.0
"""Decoded map rows as the lines ``cilium bpf`` prints.  Pure; the JSON of several maps is joined here."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, Final

from ciliumd.model.net import host_port, prefix_order

Json = dict[str, Any]
Lines = dict[str, list[str]]

_NOWHERE: Final = {4: "0.0.0.0", 6: "::"}  # noqa: S104 - how Cilium spells "no address"
# Cilium's words and bits; what it has no word for lies above its bits.
_CT_FLAGS: Final = {
    "remote-closed": ("RxClosing", 0x0001),
    "local-closed": ("TxClosing", 0x0002),
    "loopback": ("LBLoopback", 0x0008),
    "seen-non-syn": ("SeenNonSyn", 0x0010),
    "carried-peer": ("FromTunnel", 0x0400),
    "origin-remote": ("OriginRemote", 0x10000),
    "seen-reply": ("SeenReply", 0x20000),
    "from-stack": ("FromStack", 0x40000),
    "audited": ("Audited", 0x80000),
}
_SERVICE_FLAGS: Final = {
    "cluster-ip": "ClusterIP",
    "node-port": "NodePort",
    "external-ip": "ExternalIPs",
    "load-balancer": "LoadBalancer",
    "host-port": "HostPort",
    "affinity": "sessionAffinity",
}
_SCOPES: Final = {"external": "", "internal": "/i", "node": "/n"}
_POLICY_TITLES: Final = (
    "POLICY",
    "DIRECTION",
    "LABELS (source:key[=value])",
    "PORT/PROTO",
    "PROXY PORT",
    "AUTH TYPE",
    "BYTES",
    "PACKETS",
    "PREFIX",
    "COOKIE",
    "RULE",
)
_CLASS_BITS: Final = 24
_PROTOCOL_BITS: Final = 32
_PORT_BITS: Final = 48


def _address_order(text: str) -> tuple[int, int, int]:
    return prefix_order(ip_network(text))


def endpoint_lines(rows: Iterable[Json], slots: Mapping[int, Json]) -> Lines:
    """Address -> facts of the endpoint, ``(localhost)`` for the node's own."""
    lines: Lines = {}
    for row in sorted(rows, key=lambda row: _address_order(row["key"]["addr"])):
        slot = row["value"]["slot"]
        endpoint = slots.get(slot)
        if slot == "host":
            text = "(localhost)"
        elif endpoint is None:
            text = f"slot {slot} is empty"
        else:
            flags = 1 if "audit" in endpoint["flags"] else 0
            text = (
                f"id={endpoint['id']:<5} sec_id={endpoint['identity']:<5} flags={flags:#06x} "
                f"ifindex={endpoint['ifindex']:<3} mac={endpoint['mac'].upper()} "
                f"nodemac={endpoint['node_mac'].upper()}"
            )
        lines[f"{row['key']['addr']}:0"] = [text]
    return lines


def ipcache_prefix(row: Json) -> str:
    """The prefix of a row of either ipcache map."""
    key = row["key"]
    if "prefix" in key:
        return str(key["prefix"])
    return f"{key['addr']}/{128 if ':' in key['addr'] else 32}"


def ipcache_lines(rows: Iterable[Json]) -> Lines:
    """Prefix -> identity, key and tunnel endpoint."""
    return {
        ipcache_prefix(row): [_identity(row["value"])]
        for row in sorted(rows, key=lambda row: _address_order(ipcache_prefix(row)))
    }


def _identity(value: Json) -> str:
    return (
        f"identity={value['identity']} encryptkey={value['encrypt_key']} "
        f"tunnelendpoint={value['tunnel_endpoint'] or _NOWHERE[4]} flags=<none>"
    )


def ipcache_lookup(rows: Iterable[Json], address: str) -> Json | None:
    """The row of the longest prefix that holds *address*; ValueError if that is none."""
    wanted = ip_address(address)
    best: Json | None = None
    length = -1
    for row in rows:
        network = ip_network(ipcache_prefix(row))
        if wanted in network and network.prefixlen > length:
            best, length = row, network.prefixlen
    return best


def ip_entries(rows: Iterable[Json]) -> list[Json]:
    """``models.IPListEntry`` of every row, by address; ``hostIP`` only of what lies behind a tunnel."""
    return [
        {"cidr": ipcache_prefix(row), "identity": row["value"]["identity"]}
        | ({"hostIP": host} if (host := row["value"]["tunnel_endpoint"]) else {})
        | {"encryptKey": row["value"]["encrypt_key"]}
        for row in sorted(rows, key=lambda row: _address_order(ipcache_prefix(row)))
    ]


def tunnel_lines(rows: Iterable[Json]) -> Lines:
    """Remote prefix -> node, of prefixes reached through a tunnel; what lies in them goes the same way."""
    remote = [row for row in rows if "prefix" in row["key"] and row["value"]["tunnel_endpoint"]]
    return {
        ipcache_prefix(row): [row["value"]["tunnel_endpoint"]]
        for row in sorted(remote, key=lambda row: _address_order(ipcache_prefix(row)))
    }


def _frontend(key: Json) -> str:
    scope = _SCOPES[key["scope"]]
    return f"{host_port(key['addr'], key['port'])}/{key['protocol']}{scope}"


def _service_order(row: Json) -> tuple[object, ...]:
    key = row["key"]
    return (*_address_order(key["addr"]), key["port"], key["protocol"], key["scope"], key["slot"])


def service_lines(rows: Iterable[Json], backends: Mapping[int, Json]) -> Lines:
    """Frontend -> its slot 0 and the address of each backend."""
    lines: Lines = {}
    for row in sorted(rows, key=_service_order):
        key, value = row["key"], row["value"]
        tail = f"({value['rev_nat']}) ({key['slot']})"
        if key["slot"] == 0:
            kinds = [_SERVICE_FLAGS.get(flag, flag) for flag in value["flags"]]
            version = 6 if ":" in key["addr"] else 4
            text = f"{host_port(_NOWHERE[version], 0)} {tail} [{', '.join(kinds)}]"
        elif (backend := backends.get(value["target"])) is not None:
            text = f"{host_port(backend['addr'], backend['port'])}/{backend['protocol']} {tail}"
        else:
            text = f"backend {value['target']} not found"
        lines.setdefault(_frontend(key), []).append(text)
    return lines


def frontend_lines(rows: Iterable[Json]) -> Lines:
    """Frontend -> backend ids, slot by slot."""
    lines: Lines = {}
    for row in sorted(rows, key=_service_order):
        value, slot = row["value"], row["key"]["slot"]
        target, count = (value["target"], 0) if slot else (0, value["target"])
        lines.setdefault(_frontend(row["key"]), []).append(f"{target} {count} ({value['rev_nat']}) ({slot})")
    return lines


def backend_lines(rows: Iterable[Json]) -> Lines:
    """Backend id -> address and state."""
    return {
        str(row["key"]["id"]): [_backend(row["value"])]
        for row in sorted(rows, key=lambda row: int(row["key"]["id"]))
    }


def _backend(value: Json) -> str:
    return f"{host_port(value['addr'], value['port'])}/{value['protocol']} ({value['state']})"


def revnat_lines(rows: Iterable[Json]) -> Lines:
    """Service id -> the frontend replies must show."""
    return {
        str(row["key"]["id"]): [host_port(row["value"]["addr"], row["value"]["port"])]
        for row in sorted(rows, key=lambda row: int(row["key"]["id"]))
    }


def ct_line(row: Json) -> str:
    """One connection as seen from its local endpoint."""
    key, value = row["key"], row["value"]
    local, remote = host_port(key["local"], key["local_port"]), host_port(key["remote"], key["remote_port"])
    inward = "origin-remote" in value["flags"]
    source, destination = (remote, local) if inward else (local, remote)
    kind = {"service": "service ", "proxy-leg": "proxy-leg "}.get(key["kind"], "")
    shown = [_CT_FLAGS.get(flag, (flag, 0)) for flag in value["flags"]]
    flags = sum(bit for _, bit in shown)
    names = "".join(f"{name} " for name, _ in sorted(shown, key=lambda one: one[1]))
    return (
        f"{key['protocol']} {'IN' if inward else 'OUT'} {source} -> {destination} {kind}"
        f"expires={value['expires']} RxFlagsSeen={value['tcp_flags_remote']:#04x} "
        f"LastRxReport={value['last_report']} TxFlagsSeen={value['tcp_flags_local']:#04x} "
        f"LastTxReport={value['last_report']} "
        f"Flags={flags:#06x} [ {names}] RevNAT={value['rev_nat']} "
        f"SourceSecurityID={value['peer_identity']} BackendID={value['backend_id']} "
        f"PolicyVersion={value['policy_version']}"
    )


def nat_line(row: Json, now: int) -> str:
    """One masqueraded flow in one direction, or a note about ports; *now* is CLOCK_MONOTONIC in seconds."""
    key, value = row["key"], row["value"]
    source, destination = host_port(key["src"], key["sport"]), host_port(key["dst"], key["dport"])
    ago = f"Created={max(now - value['created'], 0)}sec ago"
    if key["dir"] not in {"out", "in"}:
        return f"{key['protocol']} {key['dir'].upper()} {source} -> {destination} {ago}"
    direction, what = ("OUT", "XLATE_SRC") if key["dir"] == "out" else ("IN", "XLATE_DST")
    return (
        f"{key['protocol']} {direction} {source} -> {destination} "
        f"{what} {host_port(value['addr'], value['port'])} {ago}"
    )


@dataclass(frozen=True, slots=True)
class PolicyNames:
    """What numbers of policy rows stand for: identity -> labels, cookie (as text) -> origins."""

    labels: Mapping[int, list[str]]
    origins: Mapping[str, list[str]]
    numeric: bool = False


def policy_entries(version: int, rules: Iterable[Json], classes: Iterable[Json]) -> list[Json]:
    """Rows of one policy version by identity; identity 0 is everybody who is in no class."""
    members: dict[tuple[int, str], list[int]] = {}
    for row in classes:
        if row["key"]["version"] == version:
            place = (row["value"]["class_id"], row["key"]["direction"])
            members.setdefault(place, []).append(row["key"]["identity"])
    entries = [
        {
            "verdict": row["value"]["verdict"],
            "direction": row["key"]["direction"],
            "class": row["key"]["class_id"],
            "identity": identity,
            "port": policy_port(row["key"]),
            "prefix": row["key"]["prefixlen"],
            "proxy-slot": row["value"]["proxy_slot"],
            "cookie": row["value"]["rule_cookie"],
        }
        for row in rules
        if row["key"]["version"] == version
        for identity in _members(row["key"], members)
    ]
    return sorted(entries, key=lambda e: (e["direction"] != "ingress", e["identity"], e["prefix"], e["port"]))


def _members(key: Json, members: Mapping[tuple[int, str], list[int]]) -> list[int]:
    return [0] if key["class_id"] == 0 else members.get((key["class_id"], key["direction"]), [])


def policy_port(key: Json) -> str:
    """``80/TCP``, ``8080-8191/TCP``, ``ANY/TCP`` or ``ANY`` of a policy key."""
    length = key["prefixlen"]
    if length <= _CLASS_BITS:
        return "ANY"
    if length <= _PROTOCOL_BITS:
        return f"ANY/{key['protocol']}"
    last = key["dport"] + (1 << (_PORT_BITS - length)) - 1
    ports = str(key["dport"]) if last == key["dport"] else f"{key['dport']}-{last}"
    return f"{ports}/{key['protocol']}"


def policy_table(entries: Iterable[Json], names: PolicyNames) -> Iterator[tuple[object, ...]]:
    """Titles and rows as Cilium prints them, and the rule behind each at the end."""
    titles = list(_POLICY_TITLES)
    if names.numeric:
        titles[2] = "IDENTITY"
    yield tuple(titles)
    for entry in entries:
        first, *others = _identity_names(entry["identity"], names)
        rules = names.origins.get(str(entry["cookie"])) or []
        yield (
            "Allow" if entry["verdict"] == "allow" else "Deny",
            entry["direction"].capitalize(),
            first,
            entry["port"],
            entry["proxy-slot"] or "NONE",
            "disabled",
            "-",
            "-",
            entry["prefix"],
            entry["cookie"],
            (", ".join(rules) + (" (default deny)" if entry["verdict"] == "default-deny" else "")).strip(),
        )
        for label in others:
            yield ("", "", label, *[""] * (len(titles) - 3))


def _identity_names(identity: int, names: PolicyNames) -> list[str]:
    if names.numeric:
        return [str(identity)]
    return ["ANY"] if identity == 0 else names.labels.get(identity) or [str(identity)]
