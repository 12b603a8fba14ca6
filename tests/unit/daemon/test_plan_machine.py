# SPDX-License-Identifier: Apache-2.0
"""Whatever happens in whatever order, the plan means what is computed from scratch, and breaks no promise."""

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ciliumd.bpf.policy_maps import CLASSES, RULES, split_key
from ciliumd.daemon.policy_versions import RETIRE_AFTER
from ciliumd.desired.identities import named_ports_by_identity, named_ports_of_pod
from ciliumd.desired.policy import cidrs, resolve, select, unpacked
from ciliumd.model.labels import pod_labels
from ciliumd.model.objects import RemoteEndpointRow
from ciliumd.tables import NamespaceRow
from unit.daemon import nodes
from unit.daemon.nodes import EGRESS, INGRESS

NUMBERS = st.integers(1, 5)
PODS = st.sampled_from(("pod-1", "pod-2", "pod-3"))
LABELS = st.fixed_dictionaries(
    {"app": st.sampled_from(("web", "db"))},
    optional={
        "tier": st.sampled_from(("front", "back")),
        # What no policy asks for: other identities that mean the same.
        "revision": st.sampled_from(("1", "2", "3", "4", "5", "6")),
    },
)
NAMED_PORTS = st.sampled_from(({}, {"http": ("TCP", 8080)}, {"http": ("TCP", 9090)}))
PEERS = st.sampled_from(
    (
        nodes.app("web"),
        nodes.app("db"),
        nodes.cidr("192.0.2.0/24"),
        nodes.cidr("192.0.0.0/16", "192.0.2.0/24"),
        nodes.entity("cluster"),
        nodes.entity("world"),
        nodes.entity("world-ipv4"),
        nodes.entity("all"),
    )
)
PORTS = st.sampled_from(
    (None, (nodes.port(80),), (nodes.port(name="http"),), (nodes.port(),), (nodes.icmp(0), nodes.icmp(8)))
)
# Numbers of other nodes' pods, in a namespace of their own: no label set has two numbers.
CLUSTER_NUMBERS = st.sampled_from((60001, 60002, 60003))
REMOTE_PODS = st.sampled_from(("far-1", "far-2"))
RULES_OF_POLICIES = st.lists(
    st.builds(
        lambda peer, direction, ports, deny: nodes.rule(peer, direction=direction, ports=ports, deny=deny),
        PEERS,
        st.sampled_from((INGRESS, EGRESS)),
        PORTS,
        st.booleans(),
    ),
    min_size=1,
    max_size=3,
)
NAMES = st.sampled_from(("one", "two", "three"))
SUBJECTS = st.sampled_from(
    (nodes.subject(), nodes.subject(app="web"), nodes.subject(app="db"), nodes.subject(tier="back"))
)


def event(**strategies):
    """A rule that changes something, followed by a round or by the next event, as on a busy node."""

    def decorate(change):
        def changed(self, *, settled, **values):
            change(self, **values)
            self.fresh = False
            if settled:
                self.settle()

        changed.__name__ = change.__name__
        return rule(settled=st.sampled_from((True, True, True, False)), **strategies)(changed)

    return decorate


class Machine(RuleBasedStateMachine):
    """A node's life."""

    def __init__(self):
        super().__init__()
        self.node = nodes.Planned(nodes.filled())
        self.known = {}
        self.states = {}
        self.gone = set()
        self.numbers = {}
        self.unused_since = {}
        self.fresh = False

    # ---- events ------------------------------------------------------------------------------

    @property
    def tables(self):
        """The tables of the agent that runs now."""
        return self.node.tables

    @initialize(
        labels=st.lists(st.tuples(LABELS, NAMED_PORTS), min_size=3, max_size=3),
        policies=st.lists(st.tuples(RULES_OF_POLICIES, SUBJECTS, st.booleans()), min_size=2, max_size=2),
    )
    def begin(self, labels, policies):
        """Three pods, their endpoints, and two policies."""
        for number, (one, named_ports) in enumerate(labels, 1):
            nodes.add_pod(self.tables, number, one, named_ports=named_ports)
        for name, (rules, subject, egress) in zip(("one", "two"), policies, strict=True):
            nodes.add_policy(self.tables, nodes.policy(name, *rules, subject=subject, egress=egress))
        self.settle()

    @event(team=st.sampled_from(("a", "b")))
    def label_namespace(self, team):
        """Every pod of the namespace gets other labels."""
        self.tables.namespaces.set("shop", NamespaceRow("shop", {"team": team}))

    @event(name=PODS, labels=LABELS, named_ports=NAMED_PORTS)
    def set_pod(self, name, labels, named_ports):
        """A pod appears, or gets other labels or ports."""
        self.tables.pods.set(("shop", name), nodes.pod(name, labels, named_ports=named_ports))

    @event(name=PODS, named_ports=NAMED_PORTS)
    def set_ports(self, name, named_ports):
        """A pod's ports get or lose their names; its labels stay."""
        row = self.tables.pods.get(("shop", name))
        if row is not None:
            self.tables.pods.set(("shop", name), replace(row, named_ports=named_ports))

    @event(name=PODS)
    def delete_pod(self, name):
        """A pod is not in the manifests any more."""
        self.tables.pods.delete(("shop", name))

    @event(number=NUMBERS, name=PODS)
    def add_endpoint(self, number, name):
        """A pod is wired."""
        self.tables.endpoints.set(number, nodes.endpoint(number, pod=name))

    @event(number=NUMBERS)
    def delete_endpoint(self, number):
        """A pod is taken away."""
        self.tables.endpoints.delete(number)

    @event(name=NAMES, rules=RULES_OF_POLICIES, subject=SUBJECTS, ingress=st.booleans(), egress=st.booleans())
    def set_policy(self, name, rules, subject, ingress, egress):
        """A policy is added or edited."""
        made = nodes.policy(name, *rules, subject=subject, ingress=ingress, egress=egress)
        nodes.add_policy(self.tables, made)

    @event(name=NAMES)
    def delete_policy(self, name):
        """A policy is removed."""
        self.tables.policies.delete(("CNP", "shop", name))

    @event()
    def release_unused(self):
        """Numbers nobody wants are let go, as after their quarantine."""
        for labels in set(dict(self.tables.identities.items())) - set(self.node.plan.labels.values()):
            self.numbers.pop(labels, None)
            self.tables.identities.delete(labels)
        wanted = cidrs(self.tables.policies.values())
        for prefix in set(dict(self.tables.prefixes.items())) - wanted:
            self.tables.prefixes.delete(prefix)

    @event(number=CLUSTER_NUMBERS, labels=LABELS)
    def set_cluster_identity(self, number, labels):
        """Another node needed an identity, or the number was given away anew."""
        self.tables.cluster_identities.set(number, pod_labels("far", labels, {}, "default"))

    @event(number=CLUSTER_NUMBERS)
    def delete_cluster_identity(self, number):
        """Nobody in the cluster carries it any more."""
        self.tables.cluster_identities.delete(number)

    @event(name=REMOTE_PODS, number=CLUSTER_NUMBERS, named_ports=NAMED_PORTS)
    def set_remote_pod(self, name, number, named_ports):
        """A pod of another node is published, perhaps before its identity is heard of."""
        row = RemoteEndpointRow("far", name, number, (), None, named_ports)
        self.tables.remote_endpoints.set(row.key, row)

    @event(name=REMOTE_PODS)
    def delete_remote_pod(self, name):
        """A pod of another node is gone."""
        self.tables.remote_endpoints.delete(("far", name))

    @event(seconds=st.sampled_from((0.5, 1.0, RETIRE_AFTER)))
    def wait(self, seconds):
        """Time passes."""
        self.node.clock.now += seconds

    def settle(self):
        """A round."""
        before = dict(self.states)
        self.node.refresh()
        self.fresh = True
        self._note(before)

    @precondition(lambda self: self.fresh)
    @rule(labels=LABELS)
    def irrelevant_event(self, labels):
        """A pod elsewhere and an equal row change neither rows nor numbers."""
        rows, reserved = self.node.plan.policy_rows, list(self.node.reserved)
        identities = dict(self.tables.identities.items())
        self.tables.pods.set(("shop", "elsewhere"), nodes.pod("elsewhere", labels))
        self.tables.problems.set(("Pod", "shop", "x"), nodes.pod("x", labels))
        self.node.refresh()
        assert self.node.plan.policy_rows == rows
        assert self.node.reserved == reserved
        assert dict(self.tables.identities.items()) == identities

    @precondition(lambda self: self.fresh)
    @rule()
    def restart(self):
        """The next agent starts from the rows and gives the same rows, byte by byte."""
        before = self.node.plan.policy_rows
        versions = self.node.plan.policy.versions
        self.node = self.node.restarted()
        self.node.refresh()
        assert self.node.plan.policy_rows == before
        assert self.node.plan.policy.versions == versions
        assert len(self.node.reserved) == 1
        self.unused_since = dict.fromkeys(set(self.states) - set(versions.values()), self.node.clock.now)

    # ---- promises ----------------------------------------------------------------------------

    def _note(self, before):
        plan, now = self.node.plan, self.node.clock.now
        known = dict(plan.known_identities)
        states = dict(plan.policy.states)
        for version in states.keys() - before.keys():
            assert version not in self.gone, "a number was used twice"
            assert all(version > old for old in before.keys() | self.gone)
            assert version < self.node.reserved[-1], "a number was used before it was reserved"
        for version in states.keys() & before.keys():
            self._check_growth(before[version], states[version], known)
        self.gone |= before.keys() - states.keys()
        for version in before.keys() - states.keys():
            assert now - self.unused_since[version] >= RETIRE_AFTER, "a version went too early"
        unused = states.keys() - set(plan.policy.versions.values())
        self.unused_since = {version: self.unused_since.get(version, now) for version in unused}
        self.known, self.states = known, states

    def _check_growth(self, old, new, known):
        """Rows are added for identities nobody knew; what was there means what it meant."""
        assert old.entries.items() <= new.entries.items()
        for identity in self.known.keys() & known.keys():
            if self.known[identity] == known[identity]:
                for direction in (INGRESS, EGRESS):
                    place = identity, direction
                    assert old.classes.get(place) == new.classes.get(place)

    @invariant()
    def means_what_is_computed_from_scratch(self):
        """Each endpoint's version says what select and resolve say of the tables as they are."""
        if not self.fresh:
            return
        plan, tables = self.node.plan, self.tables
        pods, policies = tables.pods.view(), tables.policies.values()
        named = named_ports_by_identity(
            tables.endpoints.values(),
            pods,
            plan.identities,
            nodes.remote_ports(tables.remote_endpoints.values()),
        )
        assert plan.policy.versions.keys() == dict(tables.endpoints.items()).keys()
        for number, version in plan.policy.versions.items():
            ports = named_ports_of_pod(pods.get(tables.endpoints.get(number).pod_key))
            rules = select(policies, plan.labels[number], named_ports=ports)
            scratch = resolve(rules, plan.known_identities, named_ports=named)
            assert plan.policy.states[version].meaning() == scratch.meaning()

    @invariant()
    def rows_say_what_the_states_say(self):
        """The flat rows, told whole or as changes, unpack to the states in force."""
        if not self.fresh:
            return
        rows = self.node.plan.policy_rows
        assert self.node.kernel == rows
        grouped = {}
        for key, value in rows.items():
            version, which, inner = split_key(key)
            grouped.setdefault(version, {CLASSES: {}, RULES: {}})[which][inner] = value
        found = {version: unpacked(maps[CLASSES], maps[RULES]) for version, maps in grouped.items()}
        assert found == dict(self.node.plan.policy.states)

    @invariant()
    def identities_keep_their_numbers(self):
        """The number of a label set does not change while it has one."""
        for labels, number in self.tables.identities.items():
            assert self.numbers.setdefault(labels, number) == number


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPlan = Machine.TestCase
