# SPDX-License-Identifier: Apache-2.0
"""
Flows as monitor lines, as Cilium's monitor JSON, and as Hubble's flow JSON (there and back).

Text and key names are what users of ``cilium monitor`` and ``hubble observe -o json`` already parse.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from ciliumd.abi import EventType
from ciliumd.flows import decode
from ciliumd.flows.decode import IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP
from ciliumd.flows.enrich import Flow, FlowEndpoint, Verdict
from ciliumd.flows.reasons import reason_text
from ciliumd.model.identity import Reserved
from ciliumd.model.net import host_port

Json = dict[str, Any]

TYPE_NAMES: Final = {
    EventType.EVENT_DROP: "drop",
    EventType.EVENT_TRACE: "trace",
    EventType.EVENT_POLICY_VERDICT: "policy-verdict",
}
TCP_FLAGS: Final = {
    "FIN": 0x01,
    "SYN": 0x02,
    "RST": 0x04,
    "PSH": 0x08,
    "ACK": 0x10,
    "URG": 0x20,
    "ECE": 0x40,
    "CWR": 0x80,
}
_MONITOR_FLAGS: Final = ("SYN", "ACK", "RST", "FIN")
_L4_NAMES: Final = {
    IPPROTO_TCP: "TCP",
    IPPROTO_UDP: "UDP",
    IPPROTO_SCTP: "SCTP",
    IPPROTO_ICMP: "ICMPv4",
    IPPROTO_ICMPV6: "ICMPv6",
}
_ETHERTYPES: Final = {
    0x0800: "IPv4",
    0x0806: "ARP",
    0x8100: "Dot1Q",
    0x86DD: "IPv6",
    0x88CC: "LinkLayerDiscovery",
}
_UNREACHABLE4: Final = {0: "Net", 1: "Host", 2: "Protocol", 3: "Port", 4: "FragmentationNeeded"}
_UNREACHABLE6: Final = {0: "NoRouteToDst", 1: "AdminProhibited", 3: "Address", 4: "Port"}
_ICMP4: Final = {
    0: "EchoReply",
    3: "DestinationUnreachable",
    5: "Redirect",
    8: "EchoRequest",
    11: "TimeExceeded",
}
_ICMP6: Final = {
    1: "DestinationUnreachable",
    2: "PacketTooBig",
    3: "TimeExceeded",
    128: "EchoRequest",
    129: "EchoReply",
    133: "RouterSolicitation",
    134: "RouterAdvertisement",
    135: "NeighborSolicitation",
    136: "NeighborAdvertisement",
}


def text(flow: Flow, *, numeric: bool = False) -> str:
    """The monitor line of *flow*; reserved identities by name unless *numeric*."""
    event = flow.event
    match event.type:
        case EventType.EVENT_DROP:
            line = (
                f"xx drop ({reason_text(event.reason)}) flow 0x0 to endpoint {flow.destination.id}, "
                f"ifindex {event.ifindex}, file {decode.file_name(event.file)}:{event.line}, "
                f"identity {identities(flow, numeric=numeric)}: {summary(flow)}"
            )
        case EventType.EVENT_POLICY_VERDICT:
            line = (
                f"Policy verdict log: flow 0x0 local EP ID {event.endpoint_id}, "
                f"remote ID {_identity(remote(flow).identity, numeric)}, proto {event.protocol}, "
                f"{decode.direction_name(event.direction)}, action {action(flow)}, auth: disabled, "
                f"{summary(flow)}"
            )
        case EventType.EVENT_TRACE:
            line = (
                f"{trace_summary(flow)} flow 0x0 identity {identities(flow, numeric=numeric)} "
                f"state {decode.ct_state_name(event.ct_state)} ifindex {flow.interface}: {summary(flow)}"
            )
    if flow.policies:
        line += f", policy {', '.join(dict.fromkeys(str(policy) for policy in flow.policies))}"
    return line


def verbose_text(flow: Flow, *, numeric: bool = False) -> str:
    """Several lines: when, where on the node, which pods, and the line itself."""
    event = flow.event
    lines = [
        f"{timestamp(event.time_ns)} {TYPE_NAMES[event.type]} {flow.verdict}: {event.length} bytes",
        f"  at   {decode.hook_name(event.hook)} of {flow.interface}",
        f"  for  endpoint {event.endpoint_id}, policy version {event.policy_version}",
        f"  {flow.source_mac} -> {flow.destination_mac} {ethertype_name(event.ethertype)}",
        f"  from {_side(flow.source, numeric)}",
        f"  to   {_side(flow.destination, numeric)}",
    ]
    lines.extend(f"  rule {policy.kind} {policy} {policy.rule}".rstrip() for policy in flow.policies)
    return "\n".join([*lines, text(flow, numeric=numeric)])


def summary(flow: Flow) -> str:
    """``10.0.0.1:1234 -> 10.0.0.2:80 tcp SYN``; addresses only, or the frame's, without ports."""
    event = flow.event
    if not flow.is_ip:
        return f"{flow.source_mac} -> {flow.destination_mac} {ethertype_name(event.ethertype)}"
    if event.protocol in (IPPROTO_ICMP, IPPROTO_ICMPV6):
        return f"{event.src} -> {event.dst} {icmp_name(flow)}"
    if event.protocol not in decode.PORT_PROTOCOLS:
        return f"{event.src} -> {event.dst}"
    line = (
        f"{host_port(event.src, event.sport)} -> {host_port(event.dst, event.dport)} "
        f"{_L4_NAMES[event.protocol].lower()}"
    )
    if event.protocol == IPPROTO_TCP:
        line += " " + ", ".join(name for name in _MONITOR_FLAGS if event.tcp_flags & TCP_FLAGS[name])
    return line.rstrip()


def trace_summary(flow: Flow) -> str:
    """Where a traced packet was seen: ``-> endpoint 12``, ``<- host``, ..."""
    match decode.trace_point_name(flow.event.trace_point):
        case "to-endpoint":
            return f"-> endpoint {flow.destination.id}"
        case "from-endpoint":
            return f"<- endpoint {flow.source.id}"
        case "to-host":
            return "-> host from"
        case point if point.startswith("to-"):
            return f"-> {point.removeprefix('to-')}"
        case point if point.startswith("from-"):
            return f"<- {point.removeprefix('from-')}"
        case _:
            return "unknown trace"


def action(flow: Flow) -> str:
    """``allow``, ``deny``, ``redirect`` or ``audit``."""
    match flow.verdict:
        case Verdict.DROPPED:
            return "deny"
        case Verdict.AUDIT:
            return "audit"
        case Verdict.REDIRECTED:
            return "redirect"
        case Verdict.FORWARDED:
            return "allow"


def remote(flow: Flow) -> FlowEndpoint:
    """The side that is not the one whose policy judged."""
    return flow.source if decode.direction_name(flow.event.direction) == "ingress" else flow.destination


def identities(flow: Flow, *, numeric: bool = False) -> str:
    """``256->257``; reserved identities by name unless *numeric*."""
    return f"{_identity(flow.source.identity, numeric)}->{_identity(flow.destination.identity, numeric)}"


def icmp_name(flow: Flow) -> str:
    """``EchoRequest``, ``DestinationUnreachable(Port)``, or ``type(code)`` for what has no name."""
    kind, code = decode.icmp_type_code(flow.event)
    is_v6 = flow.event.protocol == IPPROTO_ICMPV6
    codes = _UNREACHABLE6 if is_v6 else _UNREACHABLE4
    name = (_ICMP6 if is_v6 else _ICMP4).get(kind)
    if name is None:
        return f"{kind}({code})"
    return f"{name}({codes.get(code, code)})" if name == "DestinationUnreachable" else name


def ethertype_name(ethertype: int) -> str:
    """``IPv4``, ``ARP``, ... or the number in hex."""
    return _ETHERTYPES.get(ethertype, f"{ethertype:#06x}")


def timestamp(time_ns: int) -> str:
    """RFC 3339 with nanoseconds, in UTC."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def monitor_json(flow: Flow) -> Json:
    """*flow* in the JSON of ``cilium monitor -j``, with the policies that decided added."""
    event = flow.event
    common: Json = {
        "type": TYPE_NAMES[event.type],
        "mark": "0x0",
        "source": flow.source.id,
        "bytes": event.length,
        "srcLabel": flow.source.identity,
        "dstLabel": flow.destination.identity,
        "dstID": flow.destination.id,
    }
    match event.type:
        case EventType.EVENT_DROP:
            common |= {
                "reason": reason_text(event.reason),
                "Line": event.line,
                "File": event.file,
                "ExtError": 0,
                "Ifindex": event.ifindex,
            }
        case EventType.EVENT_TRACE:
            common |= {
                "ifindex": flow.interface,
                "state": decode.ct_state_name(event.ct_state),
                "observationPoint": decode.trace_point_name(event.trace_point),
                "traceSummary": trace_summary(flow),
            }
        case EventType.EVENT_POLICY_VERDICT:
            common |= {"action": action(flow), "direction": decode.direction_name(event.direction)}
    common["summary"] = _layers(flow)
    if flow.policies:
        common["policies"] = [str(policy) for policy in flow.policies]
    return common


def _layers(flow: Flow) -> Json:
    event = flow.event
    layers: Json = {
        "ethernet": ethertype_name(event.ethertype),
        "l2": {"src": flow.source_mac, "dst": flow.destination_mac},
    }
    if flow.is_ip:
        layers["l3"] = {"src": str(event.src), "dst": str(event.dst)}
    if event.protocol in decode.PORT_PROTOCOLS:
        layers["l4"] = {"src": str(event.sport), "dst": str(event.dport)}
        layers[_L4_NAMES[event.protocol].lower()] = summary(flow)
    elif event.protocol in _L4_NAMES and flow.is_ip:
        layers[_L4_NAMES[event.protocol].lower()] = icmp_name(flow)
    return layers


def l4_json(flow: Flow) -> Json:
    """``flow.Layer4`` of *flow*; empty for other protocols."""
    event = flow.event
    name = _L4_NAMES.get(event.protocol)
    if name is None or not flow.is_ip:
        return {}
    if event.protocol not in decode.PORT_PROTOCOLS:
        kind, code = decode.icmp_type_code(event)
        return {name: {"type": kind, "code": code}}
    ports: Json = {"source_port": event.sport, "destination_port": event.dport}
    if event.protocol == IPPROTO_TCP:
        ports["flags"] = {flag: True for flag, bit in TCP_FLAGS.items() if event.tcp_flags & bit}
    return {name: ports}


def _side(endpoint: FlowEndpoint, numeric: bool) -> str:
    pod = f"{endpoint.namespace}/{endpoint.pod_name} " if endpoint.pod_name else ""
    labels = f" [{', '.join(endpoint.labels)}]" if endpoint.labels else ""
    return f"{pod}endpoint {endpoint.id} identity {_identity(endpoint.identity, numeric)}{labels}"


def _identity(identity: int, numeric: bool) -> str:
    return str(identity) if numeric or identity not in _RESERVED else _RESERVED[identity]


_RESERVED: Final[Mapping[int, str]] = {int(member): member.label for member in Reserved}
