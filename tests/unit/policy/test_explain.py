# SPDX-License-Identifier: Apache-2.0
"""An explanation gives the verdict of the maps and everything that led to it."""

import pytest

from ciliumd import abi
from ciliumd.desired.policy import (
    ALLOW_LOCALHOST,
    ALWAYS_ORIGIN,
    EndpointRules,
    Explanation,
    MapState,
    Party,
    cookie,
    explain,
    resolve,
    select,
)
from ciliumd.model.identity import Reserved, reserved_labels
from ciliumd.model.policy import Enforcement, NamedPort, Policy, PortRule, Selector
from unit.policy.builders import DB, EGRESS, HOST, INGRESS, WEB, WORLD, app, identities, pod, policy, rule

pytestmark = pytest.mark.unit

WEB_POD, DB_POD = Party(WEB, pod("web")), Party(DB, pod("db"))
NODE = Party(HOST, reserved_labels(Reserved.HOST), is_endpoint=False)
OUTSIDE = Party(WORLD, reserved_labels(Reserved.WORLD), is_endpoint=False)
TO_DB = Selector(frozenset({("k8s", "app", "db")}))


def _explain(
    policies: list[Policy],
    source: Party,
    destination: Party,
    *,
    protocol: str = "TCP",
    port: int = 80,
    states: dict[EndpointRules, MapState] | None = None,
    enforcement: Enforcement = Enforcement.DEFAULT,
) -> Explanation:
    return explain(
        policies,
        source=source,
        destination=destination,
        protocol=protocol,
        port=port,
        states=states,
        enforcement=enforcement,
    )


def test_source_is_asked_first_then_destination() -> None:
    """Without policy both say yes and nobody is to blame."""
    result = _explain([], WEB_POD, DB_POD)

    assert [d.direction for d in result.directions] == [EGRESS, INGRESS]
    assert all(d.origins == () and d.rule_cookie == 0 for d in result.directions)
    assert result.allowed


def test_only_endpoints_have_policy() -> None:
    """The world is not asked for its egress."""
    assert [d.direction for d in _explain([], OUTSIDE, DB_POD).directions] == [INGRESS]
    assert [d.direction for d in _explain([], WEB_POD, OUTSIDE).directions] == [EGRESS]


def test_default_deny_names_every_policy_that_switched_it_on() -> None:
    """Also those whose cookie is not in the row."""
    policies = [policy(subject=TO_DB, origin=name) for name in ("b", "a")]

    result = _explain(policies, WEB_POD, DB_POD)

    assert not result.allowed
    assert result.directions[1].verdict is abi.PolicyVerdict.POLICY_VERDICT_DEFAULT_DENY
    assert result.directions[1].origins == ("a", "b")
    assert result.directions[1].rule_cookie == cookie("a")


def test_every_rule_that_decides_is_named_and_no_other() -> None:
    """Not the rule for another port, nor the allow that a deny overrules."""
    policies = [
        policy(
            rule(app("web"), origin="allow/all"),
            rule(app("web"), ports=(PortRule("TCP", 80),), origin="allow/80"),
            rule(app("web"), ports=(PortRule("TCP", 81),), deny=True, origin="deny/81"),
            rule(app("db"), origin="allow/db"),
            subject=TO_DB,
        )
    ]

    assert _explain(policies, WEB_POD, DB_POD).directions[1].origins == ("allow/80", "allow/all")
    assert _explain(policies, WEB_POD, DB_POD, port=81).directions[1].origins == ("deny/81",)
    assert _explain(policies, WEB_POD, DB_POD, port=82).directions[1].origins == ("allow/all",)


def test_host_is_explained_by_the_built_in_rule() -> None:
    """The reader must not look for a policy that does not exist."""
    result = _explain([policy(subject=TO_DB)], NODE, DB_POD)

    assert result.allowed
    assert result.directions[0].origins == (ALLOW_LOCALHOST,)


def test_icmp_is_explained_by_its_type() -> None:
    """The port of the question is the type."""
    policies = [
        policy(rule(app("web"), ports=(PortRule("ICMP", icmp_type=8),), origin="ping"), subject=TO_DB)
    ]

    echo = _explain(policies, WEB_POD, DB_POD, protocol="ICMP", port=8)
    assert (echo.allowed, echo.directions[1].origins) == (True, ("ping",))
    assert not _explain(policies, WEB_POD, DB_POD, protocol="ICMP", port=0).allowed
    assert not _explain(policies, WEB_POD, DB_POD, protocol="TCP", port=8).allowed


def test_enforcement_of_the_node_is_explained() -> None:
    """Closed by the node, not by a policy; open although there is one."""
    closed = _explain([], WEB_POD, DB_POD, enforcement=Enforcement.ALWAYS)
    assert [d.origins for d in closed.directions] == [(ALWAYS_ORIGIN,)] * 2

    policies = [policy(subject=TO_DB)]
    assert not _explain(policies, WEB_POD, DB_POD).allowed
    assert _explain(policies, WEB_POD, DB_POD, enforcement=Enforcement.NEVER).allowed


def test_named_ports_of_the_destination_count() -> None:
    """On both sides of the way: egress of the source, ingress of the destination."""
    ports = (PortRule("TCP", name="http"),)
    policies = [
        policy(
            rule(app("db"), ports=ports, direction=EGRESS, origin="out"),
            rule(app("web"), ports=ports, origin="in"),
            egress=True,
        )
    ]
    destination = Party(DB, pod("db"), named_ports=frozenset({NamedPort("http", "TCP", 8080)}))

    result = _explain(policies, WEB_POD, destination, port=8080)

    assert result.allowed
    assert [d.origins for d in result.directions] == [("out",), ("in",)]
    assert not _explain(policies, WEB_POD, destination, port=80).allowed


def test_row_shown_is_the_live_one() -> None:
    """Class numbers of the version in force, not of a computation made for the occasion."""
    policies = [policy(rule(app("web"), ports=(PortRule("TCP", 80),)), rule(app("other")), subject=TO_DB)]
    rules = select(policies, DB_POD.labels)
    live = resolve(rules, identities())

    result = _explain(policies, WEB_POD, DB_POD, states={rules: live})

    key, entry = result.directions[1].row
    assert key.class_id == live.classes[WEB, INGRESS]
    assert live.entries[key] == entry
