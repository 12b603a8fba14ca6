# SPDX-License-Identifier: Apache-2.0
"""
Records of the datapath's ring buffer, decoded.

Bytes in, frozen events out.  Names of pods, policies and devices are added by ``flows.enrich``; the
difference between the datapath's clock and the wall clock comes in as an argument.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from ciliumd.abi import CtState, Direction, Event, EventType, Hook, PolicyVerdict, SourceFile, TracePoint
from ciliumd.model.net import Addr, addr_from16

RECORD_SIZE: Final = Event.SIZE
IPPROTO_ICMP: Final = 1
IPPROTO_TCP: Final = 6
IPPROTO_UDP: Final = 17
IPPROTO_ICMPV6: Final = 58
IPPROTO_SCTP: Final = 132
PORT_PROTOCOLS: Final = frozenset({IPPROTO_TCP, IPPROTO_UDP, IPPROTO_SCTP})

_TYPES: Final = {member.value: member for member in EventType}
_address = lru_cache(maxsize=8192)(addr_from16)


@dataclass(frozen=True, slots=True)
class DecodedEvent:
    """
    One record, with times on the wall clock and addresses as addresses.

    ``reason`` is a drop reason or a policy verdict, by ``type``.  Numbers this version has no name
    for are kept as numbers: a newer datapath must not stop an older agent.
    """

    time_ns: int
    type: EventType
    reason: int
    hook: int
    direction: int
    endpoint_id: int
    file: int
    line: int
    src_identity: int
    dst_identity: int
    ifindex: int
    length: int
    rule_cookie: int
    policy_version: int
    src: Addr
    dst: Addr
    sport: int
    dport: int
    protocol: int
    tcp_flags: int
    ct_state: int
    trace_point: int
    smac: bytes
    dmac: bytes
    audit: bool
    ethertype: int


class Batch(NamedTuple):
    """What one read of the ring buffer gave: events in order, and records of no known type."""

    events: list[DecodedEvent]
    unknown: int


def wall_time_ns(monotonic_ns: int, offset_ns: int) -> int:
    """Nanoseconds since the epoch of a CLOCK_MONOTONIC stamp; *offset_ns* is wall minus monotonic."""
    return monotonic_ns + offset_ns


def decode(record: bytes, *, offset_ns: int) -> DecodedEvent | None:
    """The event in *record*, or None if its type has no name here; bytes past the record are ignored."""
    if len(record) < RECORD_SIZE:
        raise ValueError(f"an event record has {RECORD_SIZE} bytes, not {len(record)}")
    return _decoded(Event.unpack(record[:RECORD_SIZE]), offset_ns)


def decode_batch(records: bytes, *, offset_ns: int) -> Batch:
    """The events of *records*, which are laid end to end as the ring buffer drain returns them."""
    if len(records) % RECORD_SIZE:
        raise ValueError(f"{len(records)} bytes are no whole number of {RECORD_SIZE}-byte event records")
    events: list[DecodedEvent] = []
    unknown = 0
    for start in range(0, len(records), RECORD_SIZE):
        event = _decoded(Event.unpack(records[start : start + RECORD_SIZE]), offset_ns)
        if event is None:
            unknown += 1
        else:
            events.append(event)
    return Batch(events, unknown)


def icmp_type_code(event: DecodedEvent) -> tuple[int, int]:
    """Type and code of an ICMP packet; the datapath sends them in the source port."""
    return event.sport >> 8, event.sport & 0xFF


def hook_name(hook: int) -> str:
    """``from-container``, ... or the number."""
    return Hook(hook).name.removeprefix("HOOK_").lower().replace("_", "-") if hook in _HOOKS else str(hook)


def trace_point_name(point: int) -> str:
    """``to-endpoint``, ... as Hubble's TraceObservationPoint, or the number."""
    if point not in _TRACE_POINTS:
        return str(point)
    return TracePoint(point).name.removeprefix("TRACE_").lower().replace("_", "-")


def ct_state_name(state: int) -> str:
    """``new``, ``established``, ``reply``, ``related``, ``unknown`` or the number."""
    return CtState(state).name.removeprefix("CT_STATE_").lower() if state in _CT_STATES else str(state)


def direction_name(direction: int) -> str:
    """``ingress``, ``egress``, ``service`` or ``unknown``."""
    return Direction(direction).name.removeprefix("DIR_").lower() if direction in _DIRECTIONS else "unknown"


def file_name(file: int) -> str:
    """Source file a drop's line number counts in."""
    return f"{SourceFile(file).name.removeprefix('FILE_').lower()}.bpf.c" if file in _FILES else "unknown"


def is_allowed(verdict: int) -> bool:
    """Whether a policy verdict let the packet through (no policy at all does)."""
    return verdict in (PolicyVerdict.POLICY_VERDICT_NONE, PolicyVerdict.POLICY_VERDICT_ALLOW)


_HOOKS: Final = {member.value for member in Hook} - {Hook.HOOK_MAX.value}
_TRACE_POINTS: Final = {member.value for member in TracePoint}
_CT_STATES: Final = {member.value for member in CtState}
_DIRECTIONS: Final = {member.value for member in Direction} - {Direction.DIR_MAX.value}
_FILES: Final = {member.value for member in SourceFile} - {SourceFile.FILE_UNKNOWN.value}


def _decoded(row: Event, offset_ns: int) -> DecodedEvent | None:
    kind = _TYPES.get(row.type)
    if kind is None:
        return None
    return DecodedEvent(
        time_ns=wall_time_ns(row.timestamp, offset_ns),
        type=kind,
        reason=row.reason,
        hook=row.hook,
        direction=row.direction,
        endpoint_id=row.endpoint_id,
        file=row.file,
        line=row.line,
        src_identity=row.src_identity,
        dst_identity=row.dst_identity,
        ifindex=row.ifindex,
        length=row.length,
        rule_cookie=row.rule_cookie,
        policy_version=row.policy_version,
        src=_address(row.src),
        dst=_address(row.dst),
        sport=row.sport,
        dport=row.dport,
        protocol=row.protocol,
        tcp_flags=row.tcp_flags,
        ct_state=row.ct_state,
        trace_point=row.trace_point,
        smac=row.smac,
        dmac=row.dmac,
        audit=bool(row.audit),
        ethertype=row.ethertype,
    )
