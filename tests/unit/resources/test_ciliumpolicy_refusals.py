# SPDX-License-Identifier: Apache-2.0
"""What Cilium's policies may not say: every refusal names the field, and says why."""

from typing import Any

import pytest

from ciliumd.model.policy import ENTITIES
from ciliumd.resources import parse
from unit.resources.documents import ccnp_document, cnp_document, refusal

pytestmark = pytest.mark.unit

SELECT_ALL = "{endpointSelector: {}, "
PROXY = "the L7 proxy"
GROUPS = "the address groups of a cloud provider"
REQUIREMENTS = "requirements of denials: they would narrow every other one"

NOT_ENFORCED = [
    ("nodeSelector: {}", "nodeSelector", "the host firewall"),
    ("log: {value: x}", "log", "flow events that carry the text"),
    ("ingressDeny: [{fromRequires: [{}]}]", "ingressDeny[0].fromRequires", REQUIREMENTS),
    ("ingress: [{fromGroups: [{}]}]", "ingress[0].fromGroups", GROUPS),
    ("ingress: [{authentication: {mode: required}}]", "ingress[0].authentication", "mutual authentication"),
    ("egressDeny: [{toRequires: [{}]}]", "egressDeny[0].toRequires", REQUIREMENTS),
    ("egress: [{toFQDNs: [{matchName: x}]}]", "egress[0].toFQDNs", "the DNS proxy"),
    ("egress: [{toGroups: [{}]}]", "egress[0].toGroups", GROUPS),
    *(
        (
            f"ingress: [{{toPorts: [{{ports: [{{port: '80'}}], {field}: {value}}}]}}]",
            f"ingress[0].toPorts[0].{path}",
            needs,
        )
        for field, value, path, needs in [
            ("rules", "{http: [{method: GET}]}", "rules.http", PROXY),
            ("rules", "{kafka: [{role: produce}]}", "rules.kafka", PROXY),
            ("rules", "{dns: [{matchPattern: '*'}]}", "rules.dns", "the DNS proxy"),
            ("rules", "{l7proto: r2d2}", "rules.l7proto", PROXY),
            ("rules", "{l7: [{}]}", "rules.l7", PROXY),
            ("terminatingTLS", "{}", "terminatingTLS", PROXY),
            ("originatingTLS", "{}", "originatingTLS", PROXY),
            ("serverNames", "[x]", "serverNames", PROXY),
            ("listener", "{}", "listener", PROXY),
        ]
    ),
    *(
        (
            f"ingress: [{{toPorts: [{{ports: [{{port: '0', protocol: {protocol}}}]}}]}}]",
            "ingress[0].toPorts[0].ports[0].protocol",
            f"a datapath that knows {protocol}",
        )
        for protocol in ("VRRP", "IGMP")
    ),
]


@pytest.mark.parametrize("document", [cnp_document, ccnp_document], ids=["namespaced", "clusterwide"])
@pytest.mark.parametrize(("field", "path", "needs"), NOT_ENFORCED, ids=[path for _, path, _ in NOT_ENFORCED])
def test_valid_field_that_is_not_enforced_refuses_the_policy(
    field: str, path: str, needs: str, document: Any
) -> None:
    """The field is named, and what it waits for; none of the policy comes into force."""
    assert refusal(document(f"{SELECT_ALL}{field}}}")) == {
        f"spec.{path}": f"is not enforced by this version: it needs {needs}"
    }


def test_field_that_is_not_enforced_is_named_before_other_mistakes() -> None:
    """A host policy has no endpointSelector; what to tell its author is that nodeSelector does not work."""
    assert list(refusal(ccnp_document("{nodeSelector: {}}"))) == [
        "spec.nodeSelector",
        "spec.endpointSelector",
    ]


PORT = "ingress: [{{toPorts: [{{ports: [{}]}}]}}]"
PORT_PATH = "spec.ingress[0].toPorts[0].ports[0]"


@pytest.mark.parametrize(
    ("field", "path"),
    [
        ("ingres: []", "spec.ingres"),
        ("ingress: {}", "spec.ingress"),
        ("ingress: [null]", "spec.ingress[0]"),
        ("ingress: [{toEndpoints: [{}]}]", "spec.ingress[0].toEndpoints"),
        ("ingress: [{fromEndpoints: [null]}]", "spec.ingress[0].fromEndpoints[0]"),
        ("ingress: [{fromCIDR: [10.0.0.0/33]}]", "spec.ingress[0].fromCIDR[0]"),
        ("ingress: [{fromCIDR: ['::ffff:10.0.0.0/104']}]", "spec.ingress[0].fromCIDR[0]"),
        ("ingress: [{fromCIDR: [10]}]", "spec.ingress[0].fromCIDR[0]"),
        ("ingress: [{fromCIDRSet: [{cidr: 10.0.0.1}]}]", "spec.ingress[0].fromCIDRSet[0].cidr"),
        (
            "ingress: [{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.0.0.0/4]}]}]",
            "spec.ingress[0].fromCIDRSet[0].except",
        ),
        ("ingress: [{fromEntities: [wrld]}]", "spec.ingress[0].fromEntities[0]"),
        ("ingress: [{icmps: [{}]}]", "spec.ingress[0].icmps[0].fields"),
        ("ingress: [{icmps: [{fields: []}]}]", "spec.ingress[0].icmps[0].fields"),
        ("egress: [{icmps: [{fields: [{family: IPv4}]}]}]", "spec.egress[0].icmps[0].fields[0].type"),
        (
            "egress: [{icmps: [{fields: [{family: ip4, type: 8}]}]}]",
            "spec.egress[0].icmps[0].fields[0].family",
        ),
        (
            "egressDeny: [{icmps: [{fields: [{type: 8}]}], toPorts: [{ports: [{port: '1'}]}]}]",
            "spec.egressDeny[0].icmps",
        ),
        ("ingress: [{toPorts: [{}]}]", "spec.ingress[0].toPorts[0].ports"),
        ("ingress: [{toPorts: [{ports: []}]}]", "spec.ingress[0].toPorts[0].ports"),
        (
            "ingressDeny: [{toPorts: [{ports: [{port: '1'}], rules: {}}]}]",
            "spec.ingressDeny[0].toPorts[0].rules",
        ),
        (PORT.format("{port: 80}"), f"{PORT_PATH}.port"),
        (PORT.format("{port: ''}"), f"{PORT_PATH}.port"),
        (PORT.format("{port: '65536'}"), f"{PORT_PATH}.port"),
        (PORT.format("{port: '010'}"), f"{PORT_PATH}.port"),
        (PORT.format("{port: '-1'}"), f"{PORT_PATH}.port"),
        (PORT.format("{protocol: TCP}"), f"{PORT_PATH}.port"),
        (PORT.format("{port: '80', protocol: tcp}"), f"{PORT_PATH}.protocol"),
        (PORT.format("{port: '0', protocol: ICMP}"), f"{PORT_PATH}.protocol"),
        (PORT.format("{port: '0', protocol: ICMPv6}"), f"{PORT_PATH}.protocol"),
        (PORT.format("{port: '80', endPort: 79}"), f"{PORT_PATH}.endPort"),
        (PORT.format("{port: '80', endPort: 65536}"), f"{PORT_PATH}.endPort"),
        (PORT.format("{port: http, endPort: 90}"), f"{PORT_PATH}.endPort"),
        (PORT.format("{port: '0', endPort: 90}"), f"{PORT_PATH}.endPort"),
        (
            "ingress: [{fromEndpoints: [{matchLabels: {'container:app': web}}]}]",
            'spec.ingress[0].fromEndpoints[0].matchLabels["container:app"]',
        ),
        (
            "ingress: [{fromEndpoints: [{matchLabels: {'reserved:hots': ''}}]}]",
            'spec.ingress[0].fromEndpoints[0].matchLabels["reserved:hots"]',
        ),
        (
            "ingress: [{fromEndpoints: [{matchExpressions: [{key: a, operator: In, values: []}]}]}]",
            "spec.ingress[0].fromEndpoints[0].matchExpressions[0].values",
        ),
        (
            "ingress: [{fromEndpoints: [{matchExpressions: [{key: a, operator: In, values: ['x y']}]}]}]",
            "spec.ingress[0].fromEndpoints[0].matchExpressions[0].values[0]",
        ),
        ("enableDefaultDeny: {ingress: 'yes'}", "spec.enableDefaultDeny.ingress"),
    ],
)
def test_policy_that_cannot_be_is_refused_by_field(field: str, path: str) -> None:
    """Each mistake leads to its line; nothing of the policy is kept."""
    assert list(refusal(cnp_document(f"{SELECT_ALL}{field}}}"))) == [path]


@pytest.mark.parametrize("spec", ["{}", "{endpointSelector: null}", "{ingress: [{}]}"])
def test_policy_without_subject_is_refused(spec: str) -> None:
    """Selecting everything must be written, not forgotten."""
    assert list(refusal(cnp_document(spec))) == ["spec.endpointSelector"]


def test_policy_without_spec_is_refused() -> None:
    """A policy that says nothing is a mistake; so is an unknown field beside spec."""
    document = cnp_document("{endpointSelector: {}}")
    document["sepc"] = document.pop("spec")
    assert refusal(document) == {"sepc": "is not a known field"}
    del document["sepc"]
    assert refusal(document) == {"spec": "is missing"}


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (
            "ingress: [{toPorts: [{ports: [{port: '0', protocol: ICMP}]}]}]",
            "ICMP has no ports: write its types under icmps, in a rule without toPorts",
        ),
        (
            "ingress: [{icmps: [{fields: [{type: 8}]}], toPorts: [{ports: [{port: '1'}]}]}]",
            "cannot be combined with toPorts: write a rule of its own",
        ),
        (
            "ingress: [{fromEntities: [wrld]}]",
            f"'wrld' is not an entity; there are {', '.join(sorted(ENTITIES))}",
        ),
        (
            "ingress: [{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.0.0.0/4]}]}]",
            "0.0.0.0/4 is not inside 10.0.0.0/8",
        ),
    ],
)
def test_refusal_says_why_in_a_sentence(field: str, message: str) -> None:
    """What is wrong, and where there is a way that works, which."""
    assert list(refusal(cnp_document(f"{SELECT_ALL}{field}}}")).values()) == [message]


@pytest.mark.parametrize(
    "term",
    [
        "matchLabels: {'reserved:health': ''}",
        "matchExpressions: [{key: 'reserved:health', operator: Exists}]",
    ],
)
def test_namespaced_policy_cannot_select_what_has_no_namespace(term: str) -> None:
    """It would select nobody, and its author would believe otherwise."""
    assert refusal(cnp_document(f"{{endpointSelector: {{{term}}}, ingress: [{{}}]}}")) == {
        "spec.endpointSelector": (
            "demands reserved:health: only a CiliumClusterwideNetworkPolicy can select it"
        )
    }
    assert len(parse(ccnp_document(f"{{endpointSelector: {{{term}}}, ingress: [{{}}]}}")).rows()) == 1


def test_clusterwide_policy_has_no_namespace() -> None:
    """A namespace would be believed to confine it."""
    document = ccnp_document(f"{SELECT_ALL}ingress: [{{}}]}}")
    document["metadata"]["namespace"] = "shop"

    assert refusal(document) == {"metadata.namespace": "is set: the policy is one of the whole cluster"}
