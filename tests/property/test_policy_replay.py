# SPDX-License-Identifier: Apache-2.0
"""
What is foretold is what comes: a replay says what documents say, and a suggestion does what it promises.

The oracle reads the documents, those that were suggested as well.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given, settings

from ciliumd.daemon.suggestion import Side, suggestion
from ciliumd.desired.policy import Judged, Outside, Party, World, cidrs, explain, replay
from ciliumd.desired.policy import Subject as Endpoint
from ciliumd.desired.policy.rules import PROTOCOL_NUMBERS
from ciliumd.model.policy import Direction, Enforcement
from property.computed import Node
from property.reference.oracle import Address, Packet, Pod, Stranger, Subject, verdict
from property.strategies import cases
from property.worlds import Case

pytestmark = pytest.mark.property

few = settings(max_examples=settings().max_examples // 5)


def written(case: Case, subject: Subject, packet: Packet) -> str:
    """What the documents say."""
    return verdict((*case.policies, *case.objects), subject, packet, enforcement=case.enforcement)


def known_packets(case: Case) -> list[Packet]:
    """Packets of peers whose identity is known: nothing else is recorded with what it takes."""
    return [packet for packet in case.packets() if not isinstance(packet.peer, Stranger)]


def address_of(pod: Pod) -> IPv4Address | IPv6Address | None:
    """The address that a packet names a peer by."""
    return ip_address(pod.address) if pod.address else None


@few
@given(case=cases())
def test_a_replay_says_what_the_documents_say(case: Case) -> None:
    """Of every endpoint and packet at once; peers outside are known by nothing but their address."""
    node = Node(case)
    asked = [(subject, packet) for subject in case.subjects() for packet in known_packets(case)]
    traffic = [
        Judged(
            Endpoint(*node.endpoint(subject)),
            Direction[packet.direction.upper()],
            ip_address(packet.peer.ip) if isinstance(packet.peer, Address) else node.identity(packet.peer),
            PROTOCOL_NUMBERS[packet.protocol],
            packet.port,
            address_of(packet.peer) if isinstance(packet.peer, Pod) else None,
        )
        for subject, packet in asked
    ]

    found = replay(
        node.policies,
        traffic,
        world=World(node.identities, node.named_ports),
        enforcement=Enforcement(case.enforcement),
    )

    for (subject, packet), said in zip(asked, found, strict=True):
        name = said.verdict.name.removeprefix("POLICY_VERDICT_")
        assert written(case, subject, packet) == name, f"{packet} of {subject}"


@few
@given(case=cases())
def test_a_suggestion_allows_what_it_is_for_and_no_other_port(case: Case) -> None:
    """The documents say so; where a deny rule decides there is none."""
    node = Node(case)
    outside = Outside(cidrs(node.policies))
    in_force = {("policy", "", str(i)): policy for i, policy in enumerate(node.policies)}
    for subject in case.subjects()[:2]:
        labels, named_ports = node.endpoint(subject)
        own = Side("own", Party(node.identity(subject), labels, named_ports=named_ports))
        for packet in known_packets(case):
            said = written(case, subject, packet)
            if said == "ALLOW":
                continue
            is_ingress = packet.direction == "ingress"
            if isinstance(packet.peer, Address):
                address = ip_address(packet.peer.ip)
                peer = Side("peer", Party(0, outside.labels(address), is_endpoint=False), (address,))
            else:
                identity = node.judged_as(packet.peer)
                named = node.named_ports.get(identity, frozenset())
                party = Party(identity, node.identities[identity], is_endpoint=False, named_ports=named)
                addresses = [address_of(packet.peer)] if isinstance(packet.peer, Pod) else []
                peer = Side("peer", party, tuple(one for one in addresses if one is not None))
            sides = (peer, own) if is_ingress else (own, peer)
            explained = explain(
                node.policies,
                source=sides[0].party,
                destination=sides[1].party,
                protocol=packet.protocol,
                port=packet.port,
                enforcement=Enforcement(case.enforcement),
            )
            found = suggestion(
                explained, *sides, policies=in_force, enforcement=Enforcement(case.enforcement)
            )
            if said == "DENY":
                assert found.documents == ()
                assert "no rule that allows it helps" in found.note
                continue
            if not found.documents:
                assert "fromRequires" in found.note or "no rule allows just that" in found.note
                continue
            applied = case.with_policies(*case.policies, *found.documents)
            assert written(applied, subject, packet) == "ALLOW", (packet, found.documents)
            for other in known_packets(case):
                same = (other.peer, other.direction) == (packet.peer, packet.direction)
                if same and (other.protocol, other.port) != (packet.protocol, packet.port):
                    assert written(applied, subject, other) == written(case, subject, other)
