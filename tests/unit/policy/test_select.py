# SPDX-License-Identifier: Apache-2.0
"""Which rules an endpoint gets, and what makes two endpoints equal in the eyes of policy."""

from ipaddress import ip_network

import pytest

from ciliumd.desired.policy import ALWAYS_ORIGIN, INIT_ORIGIN, EndpointRules, cidrs, select
from ciliumd.model.identity import Reserved, reserved_labels
from ciliumd.model.policy import Enforcement, NamedPort, PortRule, Selector
from unit.policy.builders import EGRESS, app, cidr, pod, policy, rule

pytestmark = pytest.mark.unit

ONLY_WEB = Selector(frozenset({("k8s", "app", "web")}))


def test_endpoint_no_policy_selects_is_not_enforced() -> None:
    """No rules and no default deny: the default."""
    rules = select([policy(rule(app("db")), subject=ONLY_WEB)], pod("db"))

    assert EndpointRules() == rules
    assert not rules.ingress_enforced
    assert not rules.egress_enforced


def test_endpoint_whose_pod_is_unknown_is_closed() -> None:
    """No labels yet: default deny both ways, whatever policies there are."""
    rules = select([], reserved_labels(Reserved.INIT))

    assert rules.default_deny_ingress == rules.default_deny_egress == (INIT_ORIGIN,)
    assert rules.rules == ()


def test_policy_for_everything_takes_all_but_the_node() -> None:
    """The health endpoint and pods not known yet are endpoints; nodes are not under policies of endpoints."""
    everything = [policy(rule(app("db")))]

    for reserved in (Reserved.HEALTH, Reserved.INIT):
        assert "cnp:default/p" in select(everything, reserved_labels(reserved)).default_deny_ingress
    api_server = reserved_labels(Reserved.HOST) | reserved_labels(Reserved.KUBE_APISERVER)
    for labels in (reserved_labels(Reserved.HOST), api_server):
        assert select(everything, labels, enforcement=Enforcement.ALWAYS) == EndpointRules()


def test_where_policy_is_never_enforced_nothing_is() -> None:
    """No rule, no default deny, not even of a pod that is not known yet."""
    policies = [policy(rule(app("db"), deny=True), egress=True)]

    for labels in (pod("web"), reserved_labels(Reserved.INIT)):
        assert select(policies, labels, enforcement=Enforcement.NEVER) == EndpointRules()


def test_where_policy_is_always_enforced_everybody_is_in_default_deny() -> None:
    """Without any policy both ways; with one its rules apply, and it is named too."""
    bare = select([], pod("web"), enforcement=Enforcement.ALWAYS)
    assert bare == EndpointRules((), (ALWAYS_ORIGIN,), (ALWAYS_ORIGIN,))

    ruled = select([policy(rule(app("db")))], pod("web"), enforcement=Enforcement.ALWAYS)
    assert ruled.default_deny_ingress == ("cnp:default/p", ALWAYS_ORIGIN)
    assert ruled.default_deny_egress == (ALWAYS_ORIGIN,)
    assert len(ruled.rules) == 1


def test_default_deny_is_per_direction_and_names_its_policies() -> None:
    """Each direction lists who switched it on, sorted."""
    rules = select(
        [
            policy(origin="b", ingress=True),
            policy(origin="a", ingress=True, egress=True),
            policy(origin="c", ingress=False),
        ],
        pod("web"),
    )

    assert rules.default_deny_ingress == ("a", "b")
    assert rules.default_deny_egress == ("a",)


def test_order_of_policies_does_not_matter() -> None:
    """The key by which endpoints share a version is the same for any order."""
    policies = [policy(rule(app("db"), origin=name), origin=name) for name in "cab"]

    assert select(policies, pod("web")) == select(reversed(policies), pod("web"))
    assert [r.origin for r in select(policies, pod("web")).rules] == ["a", "b", "c"]


def test_rules_that_cover_nothing_are_left_out() -> None:
    """No peer, no port or no such named port: default deny stays, the rule goes."""
    rules = select(
        [policy(rule(), rule(app("db"), ports=()), rule(app("db"), ports=(PortRule(name="gone"),)))],
        pod("web"),
    )

    assert rules.rules == ()
    assert rules.ingress_enforced


def test_ingress_named_ports_are_those_of_the_endpoint() -> None:
    """Two pods that name their ports differently do not share rules."""
    policies = [policy(rule(app("db"), ports=(PortRule("TCP", name="http"),)))]

    first = select(policies, pod("web"), named_ports=[NamedPort("http", "TCP", 80)])
    second = select(policies, pod("web"), named_ports=[NamedPort("http", "TCP", 8080)])

    assert first.rules[0].ports == (PortRule("TCP", 80),)
    assert first != second


def test_egress_named_ports_stay_names() -> None:
    """They are ports of the destination, which selection does not know."""
    named = rule(app("db"), ports=(PortRule("TCP", name="http"),), direction=EGRESS)

    rules = select([policy(named)], pod("web"), named_ports=[NamedPort("http", "TCP", 80)])

    assert rules.rules == (named,)


def test_cidrs_are_all_prefixes_that_need_an_identity() -> None:
    """Exceptions count, the whole world does not: it has an identity."""
    found = cidrs(
        [policy(rule(cidr("10.0.0.0/8", "10.1.0.0/16"), cidr("0.0.0.0/0"), app("db")), rule(anybody=True))]
    )

    assert found == {ip_network("10.0.0.0/8"), ip_network("10.1.0.0/16")}
