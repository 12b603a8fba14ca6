# SPDX-License-Identifier: Apache-2.0
"""
What policies judged on this node: distinct flows, and how often each rule decided.

Fed with every record of the ring buffer, so a record costs no more than to be read, filtered and counted;
names are found when somebody asks.  Bounded: what was judged longest ago goes first.

A flow is what its opener began: a reply that is judged anew, because rules have changed, counts for the
flow it belongs to.  The opener's port is left out.
"""

from collections import OrderedDict
from dataclasses import dataclass
from struct import Struct
from typing import Final, NamedTuple

from ciliumd.abi import CtState, Direction, DropReason, EventType, PolicyVerdict
from ciliumd.flows.decode import IPPROTO_ICMP, IPPROTO_ICMPV6, wall_time_ns
from ciliumd.model.net import Addr, addr_from16

MOST_FLOWS: Final = 4096
MOST_RULES: Final = 16384

# The fields of ``abi.Event`` that are needed; the others are skipped.
_RECORD = Struct("<QBBxBH2xII8xII16s16s2s2sBxBx12xxBxx")
_DROP = int(EventType.EVENT_DROP)
_ALLOW, _DENY, _DEFAULT_DENY = (
    int(PolicyVerdict.POLICY_VERDICT_ALLOW),
    int(PolicyVerdict.POLICY_VERDICT_DENY),
    int(PolicyVerdict.POLICY_VERDICT_DEFAULT_DENY),
)
# By type, reason and whether it is only reported: what is denied, and not only reported, is told as a drop.
_VERDICTS: Final = {
    (_DROP, int(DropReason.DROP_POLICY), 0): _DEFAULT_DENY,
    (_DROP, int(DropReason.DROP_POLICY_DENY), 0): _DENY,
    (int(EventType.EVENT_POLICY_VERDICT), _ALLOW, 0): _ALLOW,
    (int(EventType.EVENT_POLICY_VERDICT), _DENY, 1): _DENY,
    (int(EventType.EVENT_POLICY_VERDICT), _DEFAULT_DENY, 1): _DEFAULT_DENY,
}
_REPLY, _RELATED = int(CtState.CT_STATE_REPLY), int(CtState.CT_STATE_RELATED)
_EGRESS, _INGRESS = int(Direction.DIR_EGRESS), int(Direction.DIR_INGRESS)
_OPPOSITE: Final = {_EGRESS: _INGRESS, _INGRESS: _EGRESS}
_ECHO: Final = {IPPROTO_ICMP: 8, IPPROTO_ICMPV6: 128}

_RawKey = tuple[int, int, bool, bytes, bytes, int, int, int, bytes]
_Rule = tuple[int, int, int, int]


class _Key(NamedTuple):
    """What makes a flow, as its last packet said it: ports of the responder, for ICMP type and code."""

    endpoint_id: int
    direction: int
    is_reply: bool
    source: bytes
    destination: bytes
    source_identity: int
    destination_identity: int
    protocol: int
    port: bytes


class RecordedFlow(NamedTuple):
    """
    A flow as the policy of one endpoint judged it: for its *source* on egress, its *destination* on ingress.

    *peer_identity* is the other side's; *port* is the type for ICMP.  *verdict* and *rule_cookie* are those
    of the last time; *times* counts connections that were let through, and packets that were not.
    """

    endpoint_id: int
    direction: int
    source: Addr
    destination: Addr
    peer_identity: int
    protocol: int
    port: int
    verdict: int
    rule_cookie: int
    times: int
    last_seen_ns: int


@dataclass(slots=True)
class _Last:
    """What is kept of a flow."""

    verdict: int = 0
    rule_cookie: int = 0
    times: int = 0
    monotonic_ns: int = 0


class FlowRecord:
    """The flows and rules of the events that :meth:`take` was given."""

    def __init__(self, *, most_flows: int = MOST_FLOWS, most_rules: int = MOST_RULES) -> None:
        self._most_flows = most_flows
        self._most_rules = most_rules
        self._flows: OrderedDict[_RawKey, _Last] = OrderedDict()
        self._rules: OrderedDict[_Rule, int] = OrderedDict()

    def take(self, records: bytes) -> None:
        """Count the verdicts in *records*, which are laid end to end."""
        for (
            when,
            kind,
            reason,
            told_direction,
            endpoint,
            source_identity,
            destination_identity,
            rule_cookie,
            version,
            source,
            destination,
            source_port,
            destination_port,
            protocol,
            ct_state,
            audited,
        ) in _RECORD.iter_unpack(records):
            verdict = _VERDICTS.get((kind, reason, audited))
            # An error is judged by the flow that it quotes, which is not told.
            if verdict is None or ct_state == _RELATED or told_direction not in _OPPOSITE:
                continue
            is_reply = ct_state == _REPLY
            # A drop tells where the packet went, a verdict where the flow did.
            direction = _OPPOSITE[told_direction] if is_reply and kind == _DROP else told_direction
            # In the order of _Key, which would take longer to make.
            key = (
                endpoint,
                direction,
                is_reply,
                source,
                destination,
                source_identity,
                destination_identity,
                protocol,
                source_port if is_reply or protocol in _ECHO else destination_port,
            )
            flow = self._flow(key)
            flow.verdict, flow.rule_cookie, flow.monotonic_ns = verdict, rule_cookie, when
            flow.times += 1
            self._count((version, direction, verdict, rule_cookie))

    def flows(self, *, offset_ns: int) -> list[RecordedFlow]:
        """Every flow, that of the latest verdict first; *offset_ns* is wall minus monotonic time."""
        return [_recorded(_Key(*key), last, offset_ns) for key, last in reversed(self._flows.items())]

    def verdicts(self, *, version: int, direction: int, verdict: int, rule_cookie: int) -> int:
        """How often rows of a policy version that say this decided."""
        return self._rules.get((version, direction, verdict, rule_cookie), 0)

    def _flow(self, key: _RawKey) -> _Last:
        flow = self._flows.get(key)
        if flow is not None:
            self._flows.move_to_end(key)
            return flow
        if len(self._flows) >= self._most_flows:
            self._flows.popitem(last=False)
        flow = self._flows[key] = _Last()
        return flow

    def _count(self, rule: _Rule) -> None:
        self._rules[rule] = self._rules.get(rule, 0) + 1
        self._rules.move_to_end(rule)
        if len(self._rules) > self._most_rules:
            self._rules.popitem(last=False)


def _recorded(key: _Key, last: _Last, offset_ns: int) -> RecordedFlow:
    """A flow as its opener began it."""
    source, destination = addr_from16(key.source), addr_from16(key.destination)
    identities = key.source_identity, key.destination_identity
    if key.is_reply:
        source, destination = destination, source
        identities = identities[1], identities[0]
    port = int.from_bytes(key.port, "big")
    if key.protocol in _ECHO:
        port = _ECHO[key.protocol] if key.is_reply else key.port[0]
    return RecordedFlow(
        endpoint_id=key.endpoint_id,
        direction=key.direction,
        source=source,
        destination=destination,
        peer_identity=identities[1 if key.direction == _EGRESS else 0],
        protocol=key.protocol,
        port=port,
        verdict=last.verdict,
        rule_cookie=last.rule_cookie,
        times=last.times,
        last_seen_ns=wall_time_ns(last.monotonic_ns, offset_ns),
    )
