# SPDX-License-Identifier: Apache-2.0
"""Policies in force follow what they refer to: what a change touches, and nothing else."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from ciliumd.daemon.references import References
from ciliumd.desired.policy import select
from ciliumd.model.labels import K8S, POD_NAMESPACE, Label, object_labels
from ciliumd.model.objects import CIDRGroupRow
from ciliumd.model.policy import GroupReference, PeerEntity, PeerSelector, Selector, ServiceReference
from ciliumd.model.service import Backend, Service
from ciliumd.tables import EndpointSliceRow, Problem, Tables
from unit.daemon import nodes
from unit.daemon.kernel import with_pod
from unit.daemon.nodes import EGRESS, cidr, says

OFFICE, LAB, WHOLE = "198.51.100.0/24", "203.0.113.0/24", "0.0.0.0/0"
HERE = Selector(frozenset({(K8S, "site", "here")}))


def group(name, *prefixes, site=""):
    """A group with the label site, if any."""
    labels = frozenset({Label(K8S, "site", site)}) if site else frozenset()
    return CIDRGroupRow(name, labels, tuple(map(ip_network, prefixes)))


def put(tables, *groups):
    """Groups that are there."""
    for one in groups:
        tables.cidr_groups.set(one.name, one)


def named(name, *excepts):
    """A reference by name."""
    return GroupReference(name, excepts=tuple(map(ip_network, excepts)))


def referring(name, *references, peers=(), deny=False, app="web"):
    """A policy about where the pods of an app may go."""
    made = nodes.policy(
        name,
        nodes.rule(cidr(WHOLE), direction=EGRESS, deny=deny),
        subject=nodes.subject(app=app),
        ingress=False,
        egress=True,
    )
    (rule,) = made.rules
    return replace(made, rules=(replace(rule, peers=tuple(peers), refers=references),))


def filled_in(tables):
    """The policies of now, with what they refer to."""
    references = References(tables)
    references.refresh()
    return references


def in_force(references, name):
    """The peers of the one rule of a policy."""
    (rule,) = references.policies["CNP", "shop", name].rules
    assert rule.refers == ()
    return rule.peers


def service(name, namespace="shop", *, selector=(), labels=()):
    """A service as far as it matters here."""
    return Service(
        namespace, name, "ClusterIP", (), (), selector=tuple(selector), labels=object_labels(dict(labels))
    )


def behind(name, *addresses, namespace="shop", number=0):
    """A slice of a service."""
    backends = tuple(("", Backend(ip_address(one), 80, "TCP")) for one in addresses)
    return EndpointSliceRow(namespace, f"{name}-{number}", name, backends)


def serve(tables, one, *slices):
    """A service and its slices."""
    tables.services.set(one.key, one)
    for row in slices:
        tables.slices.set((row.namespace, row.name), row)


def test_policies_without_references_are_the_table_itself():
    """Nothing is copied for who refers to nothing."""
    tables = Tables()
    references = References(tables)
    nodes.add_policy(tables, nodes.policy("plain", nodes.rule(cidr(OFFICE))))
    references.refresh()
    assert references.policies["CNP", "shop", "plain"] is tables.policies.get(("CNP", "shop", "plain"))
    revision = references.revision
    put(tables, group("office", OFFICE))
    references.refresh()
    assert references.revision == revision


def test_groups_by_name_and_label_are_their_prefixes():
    """In the order of addresses, each once, beside what the rule names itself."""
    tables = Tables()
    put(tables, group("office", LAB, OFFICE), group("lab", LAB, site="here"), group("far", "10.0.0.0/8"))
    nodes.add_policy(
        tables, referring("both", named("office"), GroupReference("", HERE), peers=(cidr("10.9.0.0/16"),))
    )
    references = filled_in(tables)
    assert in_force(references, "both") == (cidr("10.9.0.0/16"), cidr(OFFICE), cidr(LAB))


def test_exceptions_hold_for_every_prefix_of_a_group():
    """One inside takes a part away, one around takes all of it; others say nothing."""
    tables = Tables()
    put(tables, group("office", "10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"))
    excepts = ("10.1.0.0/16", "192.0.0.0/16", "198.51.100.0/24")
    nodes.add_policy(tables, referring("some", named("office", *excepts)))
    references = filled_in(tables)
    assert in_force(references, "some") == (cidr("10.0.0.0/8", "10.1.0.0/16"), cidr("2001:db8::/32"))


def test_a_group_that_is_missing_is_nobody_and_told():
    """By the field it is named in, until it is there."""
    tables = Tables()
    nodes.add_policy(tables, referring("early", named("office"), named("lab")))
    references = filled_in(tables)
    assert in_force(references, "early") == ()
    missing = "names CiliumCIDRGroup {}, which does not exist: it is nobody"
    assert references.problems() == {
        ("CNP", "shop", "early"): Problem(
            "spec.egress[0]", f"{missing.format('office')}; spec.egress[0] {missing.format('lab')}"
        )
    }
    put(tables, group("office", OFFICE), group("lab"))
    references.refresh()
    assert in_force(references, "early") == (cidr(OFFICE),)
    assert references.problems() == {}
    tables.cidr_groups.delete("office")
    references.refresh()
    assert in_force(references, "early") == ()


def test_a_change_costs_the_policies_that_refer_to_it():
    """All others stay the same objects, and a change that changes nothing is none."""
    tables = Tables()
    put(tables, group("office", OFFICE), group("lab", LAB))
    for name in ("office", "lab"):
        nodes.add_policy(tables, referring(name, named(name)))
    references = filled_in(tables)
    before, revision = dict(references.policies), references.revision
    put(tables, group("lab", LAB, "10.0.0.0/8"), group("office", OFFICE, site="there"))
    references.refresh()
    changed = {key for key, one in references.policies.items() if one is not before[key]}
    assert changed == {("CNP", "shop", "lab")}
    assert references.revision == revision + 1
    put(tables, group("office", OFFICE, site="here"))
    references.refresh()
    assert references.revision == revision + 1


def test_a_reference_that_changes_hands_is_filled_in():
    """One policy drops it in the moment another takes it up, in whichever order that is read."""
    for names in (("a", "b"), ("b", "a")):
        tables = Tables()
        put(tables, group("office", OFFICE))
        references = References(tables)
        for holder, other in (names, names[::-1]) * 4:
            nodes.add_policy(tables, referring(holder, named("office")))
            nodes.add_policy(tables, referring(other))
            references.refresh()
            assert in_force(references, holder) == (cidr(OFFICE),)


def test_a_prefix_of_a_group_is_in_the_ipcache_before_its_rules():
    """As if the policy named it itself, also when only the group changes."""
    kernel = with_pod()
    put(kernel.tables, group("office", OFFICE))
    nodes.add_policy(kernel.tables, referring("no-office", named("office"), deny=True))
    kernel.round(3)
    office = kernel.number(ip_network(OFFICE))
    assert says(kernel.node, 1, office, direction=EGRESS) == "DENY"

    before = kernel.word()
    put(kernel.tables, group("office", OFFICE, LAB))
    kernel.round()
    lab = kernel.number(ip_network(LAB))
    assert kernel.written(ip_network(LAB)) == lab
    assert kernel.word() == before
    assert says(kernel.node, 1, lab, direction=EGRESS) == "ALLOW"
    kernel.round()
    assert says(kernel.node, 1, lab, direction=EGRESS) == "DENY"

    kernel.tables.cidr_groups.delete("office")
    kernel.round(2)
    assert says(kernel.node, 1, lab, direction=EGRESS) == "ALLOW"
    assert kernel.tables.problems.get(("CNP", "shop", "no-office")).field == "spec.egress[0]"


def test_what_comes_to_the_same_but_exists_is_told_no_more():
    """A group without prefixes is as nobody as none: only what is said of the policy changes."""
    kernel = with_pod()
    nodes.add_policy(kernel.tables, referring("office", named("office")))
    kernel.round(2)
    assert kernel.tables.problems.get(("CNP", "shop", "office")).field == "spec.egress[0]"
    put(kernel.tables, group("office"))
    kernel.round()
    assert kernel.tables.problems.get(("CNP", "shop", "office")) is None
    kernel.tables.cidr_groups.delete("office")
    kernel.round()
    assert kernel.tables.problems.get(("CNP", "shop", "office")) is not None


def test_an_endpoint_no_policy_of_the_group_concerns_stays_as_it_is():
    """Its rules are the same objects, so it keeps its version."""
    kernel = with_pod()
    nodes.add_pod(kernel.tables, 2, {"app": "db"})
    put(kernel.tables, group("office", OFFICE))
    nodes.add_policy(kernel.tables, referring("office", named("office")))
    kernel.round(3)
    policy = kernel.node.plan.policy
    versions, rules = dict(policy.versions), dict(policy.rules)
    put(kernel.tables, group("office", LAB))
    kernel.round(2)
    assert policy.versions[2] == versions[2]
    assert policy.rules[2] is rules[2]
    assert policy.versions[1] != versions[1]


def test_a_service_with_a_selector_is_its_pods():
    """Those of its namespace; the addresses of its endpoints do not count."""
    tables = Tables()
    serve(tables, service("db", selector=[("app", "db")]), behind("db", "192.0.2.1"))
    nodes.add_policy(tables, referring("db", ServiceReference("shop", "db")))
    references = filled_in(tables)
    labels = {(K8S, "app", "db"), (K8S, POD_NAMESPACE, "shop")}
    assert in_force(references, "db") == (PeerSelector(Selector(frozenset(labels))),)


def test_a_service_that_selects_labels_of_the_agent_is_nobody():
    """No pod has them of its own."""
    tables = Tables()
    serve(tables, service("db", selector=[(POD_NAMESPACE, "blue")]))
    nodes.add_policy(tables, referring("db", ServiceReference("", "db")))
    references = filled_in(tables)
    assert in_force(references, "db") == ()
    assert references.problems() == {}


def test_a_service_without_a_selector_is_the_addresses_of_its_endpoints():
    """They follow its slices, those of other services cost nothing."""
    tables = Tables()
    serve(tables, service("out"), behind("out", "192.0.2.1"), behind("out", "2001:db8::1", number=1))
    serve(tables, service("other"), behind("other", "192.0.2.9"))
    nodes.add_policy(tables, referring("out", ServiceReference("", "out")))
    references = filled_in(tables)
    assert in_force(references, "out") == (cidr("192.0.2.1/32"), cidr("2001:db8::1/128"))
    revision = references.revision
    serve(tables, service("other"), behind("other", "192.0.2.10"))
    references.refresh()
    assert references.revision == revision
    serve(tables, service("out"), behind("out", "192.0.2.1", "192.0.2.2"))
    tables.slices.delete(("shop", "out-1"))
    references.refresh()
    assert in_force(references, "out") == (cidr("192.0.2.1/32"), cidr("192.0.2.2/32"))


def test_the_service_of_the_api_server_is_its_identity_as_well():
    """Its addresses are those of nodes, which no CIDR means."""
    tables = Tables()
    serve(tables, service("kubernetes", "default"), behind("kubernetes", "192.0.2.1", namespace="default"))
    nodes.add_policy(tables, referring("api", ServiceReference("default", "kubernetes")))
    references = filled_in(tables)
    assert in_force(references, "api") == (cidr("192.0.2.1/32"), PeerEntity("kube-apiserver"))


def test_services_are_selected_by_their_own_labels():
    """In one namespace or in all, and follow them."""
    tables = Tables()
    serve(tables, service("a", labels=[("site", "here")]), behind("a", "192.0.2.1"))
    serve(tables, service("b", "blue", labels=[("site", "here")]), behind("b", "192.0.2.2", namespace="blue"))
    nodes.add_policy(tables, referring("all", ServiceReference("", "", HERE)))
    nodes.add_policy(tables, referring("one", ServiceReference("shop", "", HERE)))
    references = filled_in(tables)
    assert in_force(references, "all") == (cidr("192.0.2.2/32"), cidr("192.0.2.1/32"))
    assert in_force(references, "one") == (cidr("192.0.2.1/32"),)
    serve(tables, service("a"))
    references.refresh()
    assert in_force(references, "all") == (cidr("192.0.2.2/32"),)
    assert in_force(references, "one") == ()


def test_a_service_that_is_missing_is_told():
    """With its namespace, if it has one."""
    tables = Tables()
    nodes.add_policy(tables, referring("a", ServiceReference("shop", "db")))
    nodes.add_policy(tables, referring("b", ServiceReference("", "db")))
    references = filled_in(tables)
    text = "names Service {}, which does not exist: it is nobody"
    assert references.problems() == {
        ("CNP", "shop", "a"): Problem("spec.egress[0]", text.format("shop/db")),
        ("CNP", "shop", "b"): Problem("spec.egress[0]", text.format("db of any namespace")),
    }


NAMES = ("a", "b", "c")
PREFIXES = (OFFICE, LAB, "10.0.0.0/8", "10.1.0.0/16")
REFERENCES = st.one_of(
    st.builds(named, st.sampled_from(NAMES), st.sampled_from(PREFIXES)),
    st.just(GroupReference("", HERE)),
    st.just(GroupReference("", Selector())),
    st.builds(ServiceReference, st.sampled_from(("", "shop")), st.sampled_from(NAMES)),
    st.builds(ServiceReference, st.sampled_from(("", "blue")), st.just(""), st.just(HERE)),
)
KEYS = st.tuples(st.sampled_from(("shop", "blue")), st.sampled_from(NAMES))
STEPS = st.one_of(
    st.builds(
        lambda name, prefixes, site: ("cidr_groups", name, group(name, *prefixes, site=site)),
        st.sampled_from(NAMES),
        st.lists(st.sampled_from(PREFIXES), max_size=2),
        st.sampled_from(("", "here")),
    ),
    st.builds(
        lambda name, found: ("policies", ("CNP", "shop", name), referring(name, *found)),
        st.sampled_from(NAMES),
        st.lists(REFERENCES, max_size=2),
    ),
    st.builds(
        lambda key, selector, labels: (
            "services",
            key,
            service(key[1], key[0], selector=selector, labels=labels),
        ),
        KEYS,
        st.sampled_from(((), (("app", "db"),))),
        st.sampled_from(((), (("site", "here"),))),
    ),
    st.builds(
        lambda key, of, addresses: ("slices", key, behind(of, *addresses, namespace=key[0])),
        KEYS,
        st.sampled_from(NAMES),
        st.lists(st.sampled_from(("192.0.2.1", "192.0.2.2")), max_size=2),
    ),
    st.builds(lambda table, key: (table, key, None), st.sampled_from(("services", "slices")), KEYS),
    st.builds(lambda name: ("cidr_groups", name, None), st.sampled_from(NAMES)),
    st.builds(lambda name: ("policies", ("CNP", "shop", name), None), st.sampled_from(NAMES)),
)


@given(st.lists(st.tuples(STEPS, st.booleans()), max_size=30))
def test_what_was_followed_is_what_is_read_at_once(steps):
    """Whatever came in which order: policies and problems are those of somebody who begins now."""
    tables = Tables()
    followed = References(tables)
    for (table, key, row), look in steps:
        if row is None:
            getattr(tables, table).delete(key)
        else:
            getattr(tables, table).set(key, row)
        if look:
            followed.refresh()
    followed.refresh()
    fresh = References(tables)
    fresh.refresh()
    assert dict(followed.policies) == dict(fresh.policies)
    assert followed.problems() == fresh.problems()


def test_a_rule_whose_references_are_nobody_is_left_out():
    """Neither an allow nor a deny of everybody."""
    tables = Tables()
    nodes.add_policy(tables, referring("nobody", named("gone")))
    references = filled_in(tables)
    labels = nodes.subject(app="web").match_labels
    found = select(references.policies.values(), frozenset(Label(*one) for one in labels))
    assert found.rules == ()
    assert found.egress_enforced
