# SPDX-License-Identifier: Apache-2.0
"""The computed maps give the right verdict by longest prefix alone, for known and unknown identities."""

import random

import pytest

from ciliumd import abi
from ciliumd.desired.policy import (
    ALLOW_LOCALHOST,
    ClassesExhaustedError,
    CorruptRowsError,
    EndpointRules,
    MapState,
    SelectorCache,
    classify,
    cookie,
    lookup,
    packed_classes,
    packed_rules,
    resolve,
    select,
    unpacked,
)
from ciliumd.desired.policy import ruling as ruling_module
from ciliumd.model.identity import cidr_labels
from ciliumd.model.policy import NamedPort, PeerEntity, PortRule
from unit.policy.builders import (
    CIDR_8,
    CIDR_16,
    DB,
    EGRESS,
    HOST,
    ICMP,
    INGRESS,
    OTHER,
    REMOTE_NODE,
    TCP,
    UDP,
    UNKNOWN,
    WEB,
    WORLD,
    app,
    cidr,
    identities,
    pod,
    policy,
    rule,
    rules_of,
    verdicts,
)

pytestmark = pytest.mark.unit

HTTP = (PortRule("TCP", 80),)


def test_without_policy_everything_passes_by_one_row_per_direction() -> None:
    """No classes, and the two rows without a cookie: no rule is behind them."""
    state = resolve(EndpointRules(), identities())

    assert state.classes == {}
    assert {
        (k.prefixlen, k.class_id, k.direction): (e.verdict, e.rule_cookie) for k, e in state.entries.items()
    } == {
        (24, 0, 1): (1, 0),
        (24, 0, 2): (1, 0),
    }


def test_every_class_in_use_has_a_full_wildcard_row() -> None:
    """A miss in the LPM is a datapath error, so it must not be possible."""
    state = resolve(
        rules_of(rule(app("db"), ports=HTTP), rule(PeerEntity("world"), deny=True), egress=True), identities()
    )

    in_use = {(direction, class_id) for (_, direction), class_id in state.classes.items()} | {(1, 0), (2, 0)}
    wildcards = {(k.direction, k.class_id) for k in state.entries if k.prefixlen == 24}

    assert in_use <= wildcards


def test_allow_rule_lets_in_its_peers_on_its_ports_only() -> None:
    """Everybody else, and every other port, meets the default deny."""
    state = resolve(rules_of(rule(app("db"), ports=HTTP)), identities())

    assert verdicts(state, (DB, OTHER, WORLD, UNKNOWN), (TCP, 80), (TCP, 81), (UDP, 80)) == {
        DB: ("ALLOW", "DEFAULT_DENY", "DEFAULT_DENY"),
        OTHER: ("DEFAULT_DENY",) * 3,
        WORLD: ("DEFAULT_DENY",) * 3,
        UNKNOWN: ("DEFAULT_DENY",) * 3,
    }


def test_cookie_names_rule_or_the_policy_of_the_default_deny() -> None:
    """A reader of events learns which document to look at."""
    state = resolve(rules_of(rule(app("db"), ports=HTTP, origin="cnp:default/p/ingress/0")), identities())

    assert lookup(state, DB, INGRESS, TCP, 80)[1] == cookie("cnp:default/p/ingress/0")
    assert lookup(state, DB, INGRESS, TCP, 81)[1] == cookie("cnp:default/p")


def test_among_rules_that_agree_the_smallest_origin_is_named() -> None:
    """Also when the other rule is the narrower one."""
    state = resolve(
        rules_of(
            rule(app("db"), ports=HTTP, origin="b"), rule(app("db"), origin="a"), rule(app("db"), origin="c")
        ),
        identities(),
    )

    assert lookup(state, DB, INGRESS, TCP, 80)[1] == cookie("a")
    assert len([key for key in state.entries if key.direction == INGRESS and key.class_id]) == 2


def test_a_narrower_rule_of_a_smaller_origin_is_named_where_it_holds() -> None:
    """Though its row says nothing else than the one around it."""
    rules = rules_of(rule(app("db"), ports=HTTP, origin="a"), rule(app("db"), origin="b"))
    state = resolve(rules, identities())

    assert lookup(state, DB, INGRESS, TCP, 80)[1] == cookie("a")
    assert lookup(state, DB, INGRESS, TCP, 81)[1] == cookie("b")


def test_narrow_allow_does_not_punch_through_wide_deny() -> None:
    """Deny of a peer on all ports holds on the port another rule allows."""
    state = resolve(
        rules_of(rule(app("db"), ports=HTTP), rule(PeerEntity("cluster"), deny=True, origin="deny")),
        identities(),
    )

    assert verdicts(state, (DB,), (TCP, 80), (TCP, 81)) == {DB: ("DENY", "DENY")}
    assert lookup(state, DB, INGRESS, TCP, 80) == (abi.PolicyVerdict.POLICY_VERDICT_DENY, cookie("deny"))


def test_deny_of_a_protocol_holds_inside_an_allowed_range() -> None:
    """Port 0 of TCP is wider than any TCP range and narrower than everything."""
    state = resolve(
        rules_of(
            rule(app("db"), ports=(PortRule("ANY", 1000, 2000),)),
            rule(anybody=True, ports=(PortRule("TCP"),), deny=True),
        ),
        identities(),
    )

    assert verdicts(state, (DB, UNKNOWN), (TCP, 1500), (UDP, 1500), (UDP, 999), (TCP, 22), (ICMP, 0)) == {
        DB: ("DENY", "ALLOW", "DEFAULT_DENY", "DENY", "DEFAULT_DENY"),
        UNKNOWN: ("DENY", "DEFAULT_DENY", "DEFAULT_DENY", "DENY", "DEFAULT_DENY"),
    }


def test_narrow_deny_leaves_the_rest_of_a_wide_allow() -> None:
    """One denied port in an allowed range."""
    state = resolve(
        rules_of(
            rule(app("db"), ports=(PortRule("TCP", 1, 65535),)),
            rule(app("db"), ports=(PortRule("TCP", 1023),), deny=True),
        ),
        identities(),
    )

    assert verdicts(state, (DB,), (TCP, 1022), (TCP, 1023), (TCP, 1024)) == {DB: ("ALLOW", "DENY", "ALLOW")}


def test_allow_without_ports_includes_protocols_without_ports() -> None:
    """An L3 rule lets ICMP through, a rule with ports does not."""
    state = resolve(rules_of(rule(app("db")), rule(app("other"), ports=(PortRule(),))), identities())

    assert verdicts(state, (DB, OTHER), (ICMP, 8), (47, 0), (TCP, 1)) == {
        DB: ("ALLOW", "ALLOW", "ALLOW"),
        OTHER: ("DEFAULT_DENY", "DEFAULT_DENY", "ALLOW"),
    }


def test_rules_for_anybody_reach_identities_nobody_knows() -> None:
    """No peers and entity all apply to class 0; selectors and world do not."""
    state = resolve(
        rules_of(
            rule(anybody=True, ports=HTTP),
            rule(PeerEntity("all"), ports=(PortRule("TCP", 81),)),
            rule(PeerEntity("world"), ports=(PortRule("TCP", 82),)),
        ),
        identities(),
    )

    assert verdicts(state, (UNKNOWN, WORLD), (TCP, 80), (TCP, 81), (TCP, 82)) == {
        UNKNOWN: ("ALLOW", "ALLOW", "DEFAULT_DENY"),
        WORLD: ("ALLOW", "ALLOW", "ALLOW"),
    }


def test_deny_without_default_deny_only_takes_what_it_names() -> None:
    """EnableDefaultDeny false: the direction stays open but for the deny rule."""
    state = resolve(rules_of(rule(app("db"), deny=True, ports=HTTP), ingress=False), identities())

    assert verdicts(state, (DB, OTHER, UNKNOWN), (TCP, 80), (TCP, 81)) == {
        DB: ("DENY", "ALLOW"),
        OTHER: ("ALLOW", "ALLOW"),
        UNKNOWN: ("ALLOW", "ALLOW"),
    }


def test_directions_are_independent() -> None:
    """An egress default deny does not touch what comes in."""
    state = resolve(rules_of(ingress=False, egress=True), identities())

    assert verdicts(state, (DB,), (TCP, 80)) == {DB: ("ALLOW",)}
    assert verdicts(state, (DB,), (TCP, 80), direction=EGRESS) == {DB: ("DEFAULT_DENY",)}


def test_node_reaches_its_own_pods_through_default_deny() -> None:
    """Kubelet's probes come from the host; other nodes have no such right, nor has egress to the host."""
    state = resolve(rules_of(egress=True), identities())

    assert verdicts(state, (HOST, REMOTE_NODE), (TCP, 80)) == {
        HOST: ("ALLOW",),
        REMOTE_NODE: ("DEFAULT_DENY",),
    }
    assert lookup(state, HOST, INGRESS, TCP, 80)[1] == cookie(ALLOW_LOCALHOST)
    assert verdicts(state, (HOST,), (TCP, 80), direction=EGRESS) == {HOST: ("DEFAULT_DENY",)}


@pytest.mark.parametrize("peer", [PeerEntity("host"), PeerEntity("all"), PeerEntity("cluster"), None])
def test_deny_rule_that_means_the_host_holds_against_it(peer: PeerEntity | None) -> None:
    """The built-in allow is an allow like others: deny wins, where it applies."""
    deny = rule(*([peer] if peer else []), anybody=peer is None, deny=True, ports=HTTP)

    state = resolve(rules_of(deny), identities())

    assert verdicts(state, (HOST,), (TCP, 80), (TCP, 81)) == {HOST: ("DENY", "ALLOW")}


def test_deny_rule_for_others_spares_the_host() -> None:
    """Denying the world or pods is not denying the node."""
    state = resolve(rules_of(rule(PeerEntity("world"), app("db"), deny=True)), identities())

    assert verdicts(state, (HOST, DB), (TCP, 80)) == {HOST: ("ALLOW",), DB: ("DENY",)}


def test_cidr_rules_and_exceptions() -> None:
    """The prefix inside the exception is judged as if the rule were not there."""
    state = resolve(
        rules_of(rule(cidr("10.0.0.0/8", "10.1.0.0/16"), direction=EGRESS), egress=True), identities()
    )

    assert verdicts(state, (CIDR_8, CIDR_16, WORLD, DB), (TCP, 80), direction=EGRESS) == {
        CIDR_8: ("ALLOW",),
        CIDR_16: ("DEFAULT_DENY",),
        WORLD: ("DEFAULT_DENY",),
        DB: ("DEFAULT_DENY",),
    }


def test_egress_named_port_is_the_destinations() -> None:
    """Pods behind different identities may give the name different numbers."""
    rules = rules_of(rule(anybody=True, ports=(PortRule("TCP", name="http"),), direction=EGRESS), egress=True)
    named = {
        DB: frozenset({NamedPort("http", "TCP", 8080), NamedPort("other", "TCP", 22)}),
        OTHER: frozenset({NamedPort("http", "TCP", 80), NamedPort("http", "TCP", 81)}),
    }

    state = resolve(rules, identities(), named_ports=named)

    assert verdicts(state, (DB, OTHER, WEB), (TCP, 80), (TCP, 81), (TCP, 8080), direction=EGRESS) == {
        DB: ("DEFAULT_DENY", "DEFAULT_DENY", "ALLOW"),
        OTHER: ("ALLOW", "ALLOW", "DEFAULT_DENY"),
        WEB: ("DEFAULT_DENY",) * 3,
    }


def test_identities_that_resolve_alike_share_a_class() -> None:
    """A thousand identities under one rule cost one set of rows."""
    many = identities() | {
        2000 + i: pod("db") | cidr_labels(next(iter([cidr("1.2.3.0/24").prefix]))) for i in range(100)
    }

    state = resolve(rules_of(rule(app("db"), ports=HTTP)), many)

    assert len({state.classes[identity, INGRESS] for identity in (DB, *range(2000, 2100))}) == 1
    assert len(state.entries) == 2 + 2 + 1


def test_same_input_in_any_order_gives_the_same_maps() -> None:
    """Class numbers follow from content, so a restart finds what it would write."""
    rules = [
        rule(app(name), ports=(PortRule("TCP", 80 + i),), origin=name)
        for i, name in enumerate(("web", "db", "other"))
    ]
    shuffled = list(identities().items())
    random.Random(7).shuffle(shuffled)

    assert resolve(rules_of(*rules), identities()) == resolve(rules_of(*reversed(rules)), dict(shuffled))


def test_ruling_follows_the_identities_of_its_cache() -> None:
    """What is remembered about peers changes the cost, not the result, whoever comes and goes."""
    known = identities()
    cache = SelectorCache(known)
    rules = rules_of(rule(app("db")), rule(PeerEntity("world"), deny=True))
    ruling = ruling_module.Ruling(rules, cache)
    assert ruling.resolve({}) == resolve(rules, known)

    cache.add(3000, pod("db"))
    cache.remove(DB)
    del known[DB]
    assert ruling.resolve({}) == resolve(rules, known | {3000: pod("db")})


def test_icmp_rule_opens_its_type_and_no_port() -> None:
    """The type is where a port would be; ports and other types stay shut, a rule without ports opens all."""
    echo = rules_of(rule(app("db"), ports=(PortRule("ICMP", icmp_type=8),)))
    traffic = (ICMP, 8), (ICMP, 0), (58, 8), (TCP, 8), (TCP, 80)

    said = verdicts(resolve(echo, identities()), (DB, WEB), *traffic)
    assert said == {
        DB: ("ALLOW", *["DEFAULT_DENY"] * 4),
        WEB: ("DEFAULT_DENY",) * 5,
    }
    everything = verdicts(resolve(rules_of(rule(app("db"))), identities()), (DB,), *traffic)
    assert everything == {DB: ("ALLOW",) * 5}


def test_any_protocol_leaves_icmp_shut() -> None:
    """Ports of any protocol are those of TCP, UDP and SCTP."""
    state = resolve(rules_of(rule(app("db"), ports=(PortRule(),))), identities())

    assert verdicts(state, (DB,), (TCP, 1), (132, 1), (ICMP, 8)) == {DB: ("ALLOW", "ALLOW", "DEFAULT_DENY")}


def test_names_of_ports_mean_nothing_behind_an_identity_nobody_knows() -> None:
    """Ports may be heard of before the identity: then it is still everybody else."""
    rules = rules_of(
        rule(anybody=True, ports=(PortRule("TCP", name="http"),), direction=EGRESS),
        ingress=False,
        egress=True,
    )
    named = {7777: frozenset({NamedPort("http", "TCP", 80)})}

    state = resolve(rules, identities(), named_ports=named)
    assert state == resolve(rules, identities())
    grown = state.with_added(classify(rules, {7777: pod("late")}, state, named_ports=named))
    assert verdicts(grown, (7777,), (TCP, 80), direction=EGRESS) == {7777: ("ALLOW",)}


def test_new_identity_joins_the_class_of_equal_content() -> None:
    """No row is added where one says the same."""
    rules = rules_of(rule(app("db"), ports=HTTP))
    state = resolve(rules, identities())

    added = classify(rules, {3000: pod("db", "new")}, state)

    assert added == MapState({(3000, INGRESS): state.classes[DB, INGRESS]}, {})


def test_new_identity_like_everybody_else_costs_nothing() -> None:
    """Class 0 needs no row."""
    rules = rules_of(rule(app("db"), ports=HTTP))

    assert classify(rules, {3000: pod("new")}, resolve(rules, identities())) == MapState()


def test_new_identity_of_new_content_gets_a_fresh_class() -> None:
    """Existing rows stay; the result means what a rebuild would."""
    rules = rules_of(rule(app("db"), ports=HTTP), rule(app("late"), ports=(PortRule("TCP", 81),)))
    state = resolve(rules, identities())

    added = classify(rules, {3000: pod("late")}, state)

    assert added.entries.keys().isdisjoint(state.entries)
    assert added.classes[3000, INGRESS] not in state.classes.values()
    assert state.with_added(added).meaning() == resolve(rules, identities() | {3000: pod("late")}).meaning()


def test_a_fresh_class_is_nobody_elses_in_whichever_order_rows_are_read() -> None:
    """As they are after a restart: a hash knows no order."""
    ports = {name: (PortRule("TCP", port),) for port, name in enumerate(("db", "web", "other", "late"), 80)}
    rules = rules_of(*(rule(app(name), ports=which) for name, which in ports.items()))
    state = resolve(rules, identities())
    read = MapState(state.classes, dict(reversed(state.entries.items())))

    assert len(set(state.classes.values())) > 2
    assert classify(rules, {3000: pod("late")}, read).entries.keys().isdisjoint(state.entries)


def test_identity_that_changes_its_labels_is_reclassified() -> None:
    """Also back to everybody else, which must overwrite the row."""
    rules = rules_of(rule(app("db"), ports=HTTP))
    state = resolve(rules, identities())

    assert classify(rules, {DB: pod("new")}, state) == MapState({(DB, INGRESS): 0}, {})
    assert classify(rules, {HOST: identities()[HOST]}, state) == MapState()


def test_removed_identity_is_everybody_else_again() -> None:
    """Its classes row goes, the rows of the class may stay."""
    rules = rules_of(rule(app("db"), ports=HTTP))
    rest = {identity: labels for identity, labels in identities().items() if identity != DB}

    state = resolve(rules, identities()).without([DB])

    assert verdicts(state, (DB,), (TCP, 80)) == {DB: ("DEFAULT_DENY",)}
    assert state.meaning() == resolve(rules, rest).meaning()


def test_maps_survive_the_way_through_the_kernel() -> None:
    """Bytes out and in again are the same content."""
    state = resolve(rules_of(rule(app("db"), ports=HTTP), rule(cidr("10.0.0.0/8"), deny=True)), identities())

    assert unpacked(packed_classes(state), packed_rules(state)) == state


def test_class_row_of_another_identity_is_refused() -> None:
    """A check that does not fit its key is not something we wrote."""
    key = abi.PolicyClassKey(identity=DB, direction=1).pack()
    value = abi.PolicyClass(check=WEB, class_id=1).pack()

    with pytest.raises(CorruptRowsError, match=f"identity {DB}"):
        unpacked({key: value}, {})


def test_direction_nobody_writes_is_refused() -> None:
    """Only ingress and egress are judged."""
    key = abi.PolicyKey(prefixlen=24, class_id=0, direction=3, protocol=0, dport=0).pack()

    with pytest.raises(CorruptRowsError, match="direction 3"):
        unpacked({}, {key: abi.PolicyEntry(verdict=1, flags=0, proxy_slot=0, rule_cookie=0, check=0).pack()})


def test_lookup_without_any_row_is_no_verdict() -> None:
    """The datapath drops for want of a configuration; so says the interpreter."""
    assert lookup(MapState(), DB, INGRESS, TCP, 80) == (abi.PolicyVerdict.POLICY_VERDICT_NONE, 0)


def test_more_classes_than_a_key_can_number_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is cut off silently."""
    monkeypatch.setattr(ruling_module, "CLASS_MAX", 1)
    rules = rules_of(rule(app("db"), ports=HTTP), rule(app("web")))

    with pytest.raises(ClassesExhaustedError, match="at most 2 fit"):
        resolve(rules, identities())


def test_each_rule_says_yes_to_itself_under_many_rules() -> None:
    """Hundreds of single-port rules keep apart: one identity per rule, no spill."""
    names = [f"app-{i}" for i in range(200)]
    rules = [rule(app(name), ports=(PortRule("TCP", 1000 + i),), origin=name) for i, name in enumerate(names)]
    known = {5000 + i: pod(name) for i, name in enumerate(names)}

    state = resolve(select([policy(*rules)], pod("web")), known)

    for i, name in enumerate(names):
        assert lookup(state, 5000 + i, INGRESS, TCP, 1000 + i)[1] == cookie(name)
        assert verdicts(state, (5000 + i,), (TCP, 999 + i), (TCP, 1001 + i)) == {
            5000 + i: ("DEFAULT_DENY", "DEFAULT_DENY")
        }
