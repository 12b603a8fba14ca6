# SPDX-License-Identifier: Apache-2.0
"""
Rules that name prefixes come and go: after every row that is written, packets pass as before or as after.

What neither the policies before a step nor those after it allow never passes, also when the ipcache is full,
endpoints cannot be told of their rules, or the agent is killed after any row and another one goes on.
What both allow always passes, unless a row could not be written or an agent was killed.
"""

from collections.abc import Callable, Collection
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from ciliumd.daemon import stages as names
from ciliumd.daemon.node_facts import NodeFacts
from ciliumd.daemon.prefixes import Prefixes
from ciliumd.model.policy import Direction, Peer, PeerCIDR, PeerEntity, Policy, Rule
from property import rowwise
from property.churn.judge import Flow
from property.rowwise import PORTS, SUBJECTS, Node, Outcome
from unit.daemon import nodes

pytestmark = pytest.mark.property

DEFAULT, LONG = 100, 5_000
STEPS = 6
WORLDS = ("0.0.0.0/0", "::/0")
# Each in the one before it; addresses are in all up to one of them and no further.
NESTS = (
    ("198.0.0.0/8", "198.51.0.0/16", "198.51.100.0/24", "198.51.100.7/32"),
    ("203.0.0.0/8", "203.0.113.0/24", "203.0.113.128/25"),
    ("2001:db8::/32", "2001:db8:1::/48"),
)
PEERS = (
    *("192.0.2.1", "198.1.0.1", "198.51.1.1", "198.51.100.1", "198.51.100.7"),
    *("203.1.0.1", "203.0.113.1", "203.0.113.129", "2001:db9::1", "2001:db8:2::1", "2001:db8:1::1"),
)
FLOWS = [
    Flow(subject, direction, peer, "TCP", port)
    for subject in SUBJECTS
    for direction in ("ingress", "egress")
    for peer in PEERS
    for port in PORTS
]
STEADY_ROWS = 2


# ---- what is meant ------------------------------------------------------------------------------


def allows(policies: Collection[Policy], flow: Flow) -> bool:
    """Whether *policies* allow *flow*, read off their rules."""
    return rowwise.allows(policies, flow, lambda peer: _holds(peer, flow.peer))


def _holds(peer: Peer, address: str) -> bool:
    match peer:
        case PeerEntity(name):
            assert name in ("world", "all")
            return True
        case PeerCIDR(prefix, excepts):
            addr = ip_address(address)
            return addr in prefix and not any(addr in one for one in excepts)
    raise AssertionError(peer)


# ---- what happens -------------------------------------------------------------------------------


class Run(rowwise.Run):
    """Policies that change step by step, and every flow after every row."""

    after: Collection[Policy] = ()

    def made(self, loop: Any) -> Node:
        """A node without a word of its pods' networks."""
        return Node(loop, self.wrote, NodeFacts("node", "default", (ip_address("10.0.0.1"),)))

    def run(self) -> None:
        """All the steps."""
        policies: dict[Any, Policy] = {}
        for _ in range(STEPS):
            policies = dict(policies)
            for _ in range(self.chance.choice((1, 1, 1, 2))):
                one = self._policy(f"p{self.chance.randrange(3)}")
                key = (one.kind, one.namespace, one.name)
                policies.pop(key, None)
                if self.chance.random() < 0.8:
                    policies[key] = one
            self._step(policies)

    def _step(self, policies: dict[Any, Policy]) -> None:
        before, self.after = tuple(self.node.policies.values()), tuple(policies.values())
        flows = self.chance.sample(FLOWS, 30)
        self.meant = {flow: (allows(before, flow), allows(self.after, flow)) for flow in flows}
        lpm, addresses = self.node.maps[names.IPCACHE_LPM], self.node.maps[names.IPCACHE]
        self.gentle = True
        if self.harsh and self.chance.random() < 0.5:
            lpm.room, addresses.room = len(lpm.rows), len(addresses.rows) + self.chance.randint(0, 1)
            lpm.room += self.chance.randint(0, 2)
            self.gentle = False
        self.node.set_policies(policies)
        states = self.node.maps[names.STATES]
        states.stuck = self.harsh and self.chance.random() < 0.2
        self.gentle &= not states.stuck
        self.maybe_kill()
        self.survive(self.node.settle)
        self.kill_in = -1
        self.survive(self.node.rest if states.stuck else self.node.settle)
        states.stuck = False
        self.node.rest(40.0, 1)
        # What was before does not count any more.
        self.meant = {flow: (after, after) for flow, (_, after) in self.meant.items()}
        self.look("the last one")
        self.survive(self.node.rest)
        self.outcome.refused += lpm.refused + addresses.refused
        lpm.room = addresses.room = None
        self.node.rest(40.0)
        self.gentle = True
        self.look("the last one, with room for all")
        self.outcome.steps += 1
        self.unfinished(self.node.in_the_end())
        if len(lpm.rows) - STEADY_ROWS != sum(one.prefixlen < one.max_prefixlen for one in self._named()):
            self.unfinished(f"rows of {sorted(map(str, self._named()))}")

    def _named(self) -> set[Any]:
        peers = [
            peer
            for policy in self.after
            for rule in policy.rules
            for peer in rule.peers or ()
            if isinstance(peer, PeerCIDR)
        ]
        return {one for peer in peers for one in (peer.prefix, *peer.excepts) if one.prefixlen}

    def _policy(self, name: str) -> Policy:
        chance = self.chance
        rules = [
            Rule(
                chance.choice(tuple(Direction)),
                chance.random() < 0.3,
                tuple(self._peer() for _ in range(chance.randint(1, 2))),
                chance.choice((None, None, (nodes.port(80),))),
                "0",
            )
            for _ in range(chance.randint(1, 3))
        ]
        return self.policy(name, *rules)

    def _peer(self) -> Peer:
        nest = self.chance.choice(NESTS)
        chain = (WORLDS["::" in nest[0]], *nest)
        at = self.chance.randrange(len(chain) + 1)
        if at == len(chain):
            return PeerEntity("world")
        inside = chain[at + 1 :]
        if at == 0:
            inside = tuple(one for each in NESTS for one in each if (":" in one) == (":" in chain[0]))
        excepts = self.chance.sample(inside, min(len(inside), self.chance.choice((0, 1, 1, 2))))
        return PeerCIDR(ip_network(chain[at]), tuple(ip_network(one) for one in excepts))


def runs(first: int, count: int, *, harsh: bool) -> Outcome:
    """Some runs, by their seeds."""
    return rowwise.runs(Run, first, count, harsh=harsh)


def test_nothing_is_opened_or_lost_while_prefixes_come_and_go(
    is_long: bool, record_property: Callable[[str, object], None]
) -> None:
    """Every row can be written."""
    outcome = runs(0, LONG if is_long else DEFAULT, harsh=False)
    record_property(
        "figure", f"{outcome.steps} changes of prefixes, {outcome.rows} rows, none opened or lost"
    )
    outcome.assert_harmless(harsh=False)


def test_a_full_ipcache_and_agents_that_die_open_nothing(is_long: bool) -> None:
    """Rows that do not fit, agents killed after any row; in the end all is as written."""
    outcome = runs(0, LONG if is_long else DEFAULT, harsh=True)
    outcome.assert_harmless(harsh=True)


# ---- controls -----------------------------------------------------------------------------------


def test_rules_that_do_not_wait_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as rules and prefixes came in one round, exceptions were let in until their rows were there."""

    def look(self: Prefixes, *arguments: Any) -> None:
        real(self, *arguments)
        self.awaited, self.stand_ins = frozenset(), {}

    real = Prefixes.look
    monkeypatch.setattr(Prefixes, "look", look)
    assert runs(0, 10, harsh=False).opened


def test_rules_that_close_instead_of_waiting_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The world is shut until an exception from it is there: nothing is opened, but something lost."""

    def look(self: Prefixes, *arguments: Any) -> None:
        real(self, *arguments)
        self.awaited = frozenset()

    real = Prefixes.look
    monkeypatch.setattr(Prefixes, "look", look)
    outcome = runs(0, 10, harsh=False)
    assert outcome.lost
    assert not outcome.opened
