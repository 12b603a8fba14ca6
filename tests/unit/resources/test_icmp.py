# SPDX-License-Identifier: Apache-2.0
"""ICMP rules: types by number and by name, of both families, in every section."""

import pytest

from ciliumd.model.policy import PeerEntity, PortRule, Rule
from unit.resources.documents import cnp_document, policy, refusal

pytestmark = pytest.mark.unit

SECTIONS = ("ingress", "ingressDeny", "egress", "egressDeny")


def rule(text: str, *, section: str = "ingress") -> Rule:
    """The one rule of a policy for every endpoint."""
    (only,) = policy(cnp_document(f"{{endpointSelector: {{}}, {section}: [{text}]}}")).rules
    return only


def ports(fields: str) -> tuple[PortRule, ...] | None:
    """What a list of ICMP fields means."""
    return rule(f"{{icmps: [{{fields: {fields}}}]}}").ports


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("{type: 8}", PortRule("ICMP", icmp_type=8)),
        ("{type: 0}", PortRule("ICMP", icmp_type=0)),
        ("{type: 255, family: IPv4}", PortRule("ICMP", icmp_type=255)),
        ("{type: '8'}", PortRule("ICMP", icmp_type=8)),
        ("{type: EchoRequest}", PortRule("ICMP", icmp_type=8)),
        ("{type: Echo}", PortRule("ICMP", icmp_type=8)),
        ("{type: EchoReply, family: IPv4}", PortRule("ICMP", icmp_type=0)),
        ("{type: EchoRequest, family: IPv6}", PortRule("ICMPV6", icmp_type=128)),
        ("{family: IPv6, type: NeighborSolicitation}", PortRule("ICMPV6", icmp_type=135)),
        ("{family: IPv6, type: 0}", PortRule("ICMPV6", icmp_type=0)),
    ],
)
def test_type_is_a_number_or_a_name_of_its_family(field: str, expected: PortRule) -> None:
    """IPv4 unless said otherwise."""
    assert ports(f"[{field}]") == (expected,)


@pytest.mark.parametrize(
    "value", ["256", "-1", "'08'", "'256'", "true", "8.0", "null", "echo", "NoSuchType", "[8]"]
)
def test_anything_else_is_refused(value: str) -> None:
    """Names are those of the CRD, letter by letter."""
    document = cnp_document(
        f"{{endpointSelector: {{}}, ingress: [{{icmps: [{{fields: [{{type: {value}}}]}}]}}]}}"
    )

    (message,) = refusal(document).values()
    assert "is not an ICMP type of IPv4: a number up to 255, or one of EchoReply, " in message


def test_name_of_the_other_family_is_refused() -> None:
    """PacketTooBig is none of IPv4's; the message lists those that are."""
    fields = "[{type: PacketTooBig}, {type: Photuris, family: IPv6}]"
    document = cnp_document(f"{{endpointSelector: {{}}, ingress: [{{icmps: [{{fields: {fields}}}]}}]}}")

    found = refusal(document)
    assert list(found) == [f"spec.ingress[0].icmps[0].fields[{i}].type" for i in (0, 1)]
    assert "'PacketTooBig' is not an ICMP type of IPv4" in found["spec.ingress[0].icmps[0].fields[0].type"]
    assert "MulticastListenerQuery" in found["spec.ingress[0].icmps[0].fields[1].type"]


@pytest.mark.parametrize("section", SECTIONS)
def test_types_add_up_and_peers_are_as_ever(section: str) -> None:
    """Lists add up; without peers it is everybody, with an empty list of peers nobody."""
    side = "from" if section.startswith("ingress") else "to"
    icmps = "icmps: [{fields: [{type: 8}, {type: 13}]}, {fields: [{type: 128, family: IPv6}]}]"
    types = (
        PortRule("ICMP", icmp_type=8),
        PortRule("ICMP", icmp_type=13),
        PortRule("ICMPV6", icmp_type=128),
    )

    anybody = rule(f"{{{icmps}}}", section=section)
    assert (anybody.peers, anybody.ports) == (None, types)
    nodes = rule(f"{{{side}Entities: [remote-node], {icmps}}}", section=section)
    assert (nodes.peers, nodes.ports) == ((PeerEntity("remote-node"),), types)
    nobody = rule(f"{{{side}Entities: [], {icmps}}}", section=section)
    assert (nobody.peers, nobody.ports) == ((), types)


def test_empty_list_of_types_is_no_list() -> None:
    """As for ports: then the peers alone decide."""
    assert rule("{fromEntities: [all], icmps: []}").ports is None
    assert rule("{icmps: []}").peers == ()
