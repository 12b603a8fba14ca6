# SPDX-License-Identifier: Apache-2.0
"""
Flows as JSON on the agent's socket, and back.

The outer shape is ``hubble observe -o json``: a ``flow`` in the field names of ``flow.proto``, or
``lost_events``.  What the proto has no field for travels in ``extensions``, so that the way back is exact.
"""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Final

from ciliumd.abi import EventType
from ciliumd.flows import decode
from ciliumd.flows.decode import DecodedEvent
from ciliumd.flows.enrich import Flow, FlowEndpoint, PolicyName, Verdict
from ciliumd.flows.render import Json, l4_json, summary, timestamp
from ciliumd.model.net import mac_bytes

RING_BUFFER: Final = "PERF_EVENT_RING_BUFFER"
SUBSCRIBER_QUEUE: Final = "OBSERVER_EVENTS_QUEUE"


@dataclass(frozen=True, slots=True)
class LostEvents:
    """A gap in a stream of flows (``flow.LostEvent``)."""

    source: str
    num_events_lost: int


def to_json(item: Flow | LostEvents) -> Json:
    """One line of a monitor stream."""
    if isinstance(item, LostEvents):
        return {"lost_events": {"source": item.source, "num_events_lost": item.num_events_lost}}
    time = timestamp(item.event.time_ns)
    return {"flow": _flow_json(item, time), "node_name": item.node_name, "time": time}


def from_json(line: Json) -> Flow | LostEvents:
    """The flow or gap in one line of a monitor stream; KeyError or ValueError if it is neither."""
    if "lost_events" in line:
        lost = line["lost_events"]
        return LostEvents(source=str(lost["source"]), num_events_lost=int(lost["num_events_lost"]))
    return _flow_from_json(line["flow"])


def _flow_json(flow: Flow, time: str) -> Json:
    event = flow.event
    out: Json = {
        "time": time,
        "verdict": str(flow.verdict),
        "ethernet": {"source": flow.source_mac, "destination": flow.destination_mac},
        "source": _endpoint_json(flow.source),
        "destination": _endpoint_json(flow.destination),
        "Type": "L3_L4",
        "node_name": flow.node_name,
        "event_type": {"type": int(event.type), "sub_type": _sub_type(event)},
        "traffic_direction": _traffic_direction(event),
        "interface": {"index": event.ifindex, "name": flow.interface},
        "Summary": summary(flow),
        "extensions": {
            "endpoint_id": event.endpoint_id,
            "hook": event.hook,
            "direction": event.direction,
            "length": event.length,
            "rule_cookie": event.rule_cookie,
            "policy_version": event.policy_version,
            "ct_state": event.ct_state,
            "ethertype": event.ethertype,
            "addresses": [str(event.src), str(event.dst)],
            "protocol": event.protocol,
            "ports": [event.sport, event.dport],
            "tcp_flags": event.tcp_flags,
            "reason": event.reason,
            "trace_point": event.trace_point,
            "audit": event.audit,
            "file": event.file,
            "line": event.line,
            "policies": [asdict(policy) for policy in flow.policies],
        },
    }
    if flow.is_ip:
        version = "IPv6" if flow.is_ipv6 else "IPv4"
        out["IP"] = {"source": str(event.src), "destination": str(event.dst), "ipVersion": version}
    if l4 := l4_json(flow):
        out["l4"] = l4
    out |= _by_type(flow)
    return out


def _by_type(flow: Flow) -> Json:
    event = flow.event
    match event.type:
        case EventType.EVENT_DROP:
            return {
                "drop_reason": event.reason,
                "drop_reason_desc": flow.drop_reason_desc,
                "file": {"name": decode.file_name(event.file), "line": event.line},
                **_policies_json(flow),
            }
        case EventType.EVENT_POLICY_VERDICT:
            return _policies_json(flow)
        case EventType.EVENT_TRACE:
            state = decode.ct_state_name(event.ct_state)
            point = decode.trace_point_name(event.trace_point).replace("-", "_").upper()
            out: Json = {"trace_observation_point": point, "trace_reason": state.upper()}
            if state in {"new", "established", "reply"}:
                out["is_reply"] = state == "reply"
            return out


def _policies_json(flow: Flow) -> Json:
    direction = decode.direction_name(flow.event.direction)
    if not flow.policies or direction not in {"ingress", "egress"}:
        return {}
    denied = flow.verdict in {Verdict.DROPPED, Verdict.AUDIT}
    return {
        f"{direction}_{'denied' if denied else 'allowed'}_by": [
            {"name": policy.name, "namespace": policy.namespace, "kind": policy.kind}
            for policy in flow.policies
        ]
    }


def _endpoint_json(endpoint: FlowEndpoint) -> Json:
    return {
        "ID": endpoint.id,
        "identity": endpoint.identity,
        "namespace": endpoint.namespace,
        "labels": list(endpoint.labels),
        "pod_name": endpoint.pod_name,
    }


def _sub_type(event: DecodedEvent) -> int:
    return event.trace_point if event.type == EventType.EVENT_TRACE else event.reason


def _traffic_direction(event: DecodedEvent) -> str:
    name = decode.direction_name(event.direction)
    return name.upper() if name in {"ingress", "egress"} else "TRAFFIC_DIRECTION_UNKNOWN"


def _flow_from_json(out: Json) -> Flow:
    more: dict[str, Any] = out["extensions"]
    event = DecodedEvent(
        time_ns=_time_ns(out["time"]),
        type=EventType(out["event_type"]["type"]),
        reason=more["reason"],
        hook=more["hook"],
        direction=more["direction"],
        endpoint_id=more["endpoint_id"],
        file=more["file"],
        line=more["line"],
        src_identity=out["source"]["identity"],
        dst_identity=out["destination"]["identity"],
        ifindex=out["interface"]["index"],
        length=more["length"],
        rule_cookie=more["rule_cookie"],
        policy_version=more["policy_version"],
        src=ip_address(more["addresses"][0]),
        dst=ip_address(more["addresses"][1]),
        sport=more["ports"][0],
        dport=more["ports"][1],
        protocol=more["protocol"],
        tcp_flags=more["tcp_flags"],
        ct_state=more["ct_state"],
        trace_point=more["trace_point"],
        smac=mac_bytes(out["ethernet"]["source"]),
        dmac=mac_bytes(out["ethernet"]["destination"]),
        audit=more["audit"],
        ethertype=more["ethertype"],
    )
    return Flow(
        event=event,
        verdict=Verdict(out["verdict"]),
        source=_endpoint_from_json(out["source"]),
        destination=_endpoint_from_json(out["destination"]),
        policies=tuple(PolicyName(**policy) for policy in more["policies"]),
        interface=out["interface"]["name"],
        node_name=out["node_name"],
    )


def _endpoint_from_json(out: Json) -> FlowEndpoint:
    return FlowEndpoint(
        id=out["ID"],
        identity=out["identity"],
        namespace=out["namespace"],
        labels=tuple(out["labels"]),
        pod_name=out["pod_name"],
    )


def _time_ns(time: str) -> int:
    seconds, _, nanoseconds = time.removesuffix("Z").partition(".")
    whole = datetime.strptime(seconds, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    return int(whole.timestamp()) * 1_000_000_000 + int(nanoseconds.ljust(9, "0"))
