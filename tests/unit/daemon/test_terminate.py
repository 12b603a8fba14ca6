# SPDX-License-Identifier: Apache-2.0
"""When sockets and flows are looked through, and what becomes of a look that fails."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import pytest

from ciliumd import abi
from ciliumd.bpf.errors import BpfError
from ciliumd.daemon import terminate
from ciliumd.daemon.terminate import Terminator
from ciliumd.desired.departed import Reachable, peer
from ciliumd.metrics.tally import Tallies
from ciliumd.model.net import addr16
from ciliumd.net import sockdiag
from ciliumd.net.errors import NamespaceGone

UDP = 17
ONE, TWO = (addr16(ip_address(text)) for text in ("10.0.0.1", "10.0.0.2"))
CT = dict.fromkeys(abi.CtEntry.__match_args__, 0)
SECONDS = 20


class Rows:
    """A map."""

    def __init__(self, rows):
        self.rows = dict(rows)
        self.failure = None

    def items(self):
        """Every row."""
        return iter(list(self.rows.items()))

    def delete_batch(self, keys):
        """Delete; the failures by key."""
        if self.failure:
            return dict.fromkeys(keys, self.failure)
        for key in keys:
            del self.rows[key]
        return {}


def flow(backend):
    """A flow of UDP to a backend of service 1."""
    key = abi.CtKey(ONE, TWO, 4000 + backend, 53, UDP, abi.CtKind.CT_KIND_SERVICE, 0)
    return key.pack(), abi.CtEntry(**{**CT, "rev_nat": 1, "backend_id": backend}).pack()


def sock(cookie, address):
    """A socket connected to a backend of service 1."""
    return abi.SockRevnatKey(cookie, address, 53, UDP).pack(), abi.SockRevnat(TWO, 53, 1).pack()


class Machine:
    """A terminator over rows, and the calls it makes."""

    def __init__(self, monkeypatch, executor):
        self.ct = Rows([flow(1), flow(2)])
        self.socks = Rows([sock(7, ONE), sock(8, TWO)])
        self.destroyed = []
        self.entered = []
        self.failure = None
        self.tally = Tallies().terminated
        self.backends = {1, 2}
        monkeypatch.setattr(sockdiag, "destroy", self._destroy)
        monkeypatch.setattr(terminate, "run_in_namespace", self._enter)
        self.terminator = Terminator(
            maps={"cilium_ct_v1": self.ct, "cilium_lb_sock_v1": self.socks},
            executor=executor,
            reachable=self.reachable,
            namespaces=lambda: ["/run/netns/pod", "/run/netns/gone"],
            sockets=True,
            tally=self.tally,
            by_iterator=False,
        )

    def reachable(self):
        """Backend 1 is ONE, 2 is TWO."""
        peers = {1: peer(ONE, 53, UDP), 2: peer(TWO, 53, UDP)}
        return Reachable(
            frozenset((1, peers[one]) for one in self.backends), frozenset((1, one) for one in self.backends)
        )

    def _destroy(self, protocol, doomed):
        if self.failure:
            raise self.failure
        self.destroyed.append((protocol, sorted(one.cookie for one in doomed)))
        return len(doomed)

    def _enter(self, path, function):
        if path.endswith("gone"):
            raise NamespaceGone(path, "No such file or directory")
        self.entered.append(path)
        function()

    async def look(self):
        """One look, as after a round."""
        self.terminator.look()
        async with asyncio.timeout(SECONDS):
            await self.terminator.work()


@pytest.fixture
def machine(monkeypatch):
    """Two backends, a flow and a socket to each."""
    with ThreadPoolExecutor(1) as executor:
        yield Machine(monkeypatch, executor)


def test_the_first_look_finds_what_an_agent_before_left(machine):
    """Backend 1 went while no agent was there."""
    machine.backends = {2}
    asyncio.run(machine.look())

    assert machine.ct.rows == dict([flow(2)])
    # In the node's own namespace and the pod's; one that has gone has no sockets.
    assert machine.destroyed == [(UDP, [7]), (UDP, [7])]
    assert machine.entered == ["/run/netns/pod"]
    assert (machine.terminator.totals.sockets, machine.terminator.totals.flows) == (2, 1)
    assert machine.tally.value("flow", "UDP", "success") == 1
    assert machine.tally.value("socket", "UDP", "success") == 2


def test_only_a_loss_is_looked_into_and_once_more_a_little_later(machine, monkeypatch):
    """A backend more is no reason; who was about to connect is found by the second look."""
    monkeypatch.setattr(terminate, "AGAIN_SECONDS", 0.01)

    async def body():
        machine.backends = {1}
        await machine.look()
        seen = len(machine.destroyed)
        machine.backends = {1, 2}
        machine.socks.rows.update([sock(9, addr16(ip_address("10.0.0.3")))])
        await machine.look()
        assert len(machine.destroyed) == seen
        machine.backends = {2}
        await machine.look()
        assert machine.destroyed[-1] == (UDP, [7, 9])
        machine.socks.rows.update([sock(10, ONE)])
        async with asyncio.timeout(SECONDS):
            await machine.terminator.work()
        # What was looked for is not looked for again.
        assert machine.destroyed[-1] == (UDP, [10])

    asyncio.run(body())


@pytest.mark.parametrize("what", ["flows", "sockets"])
def test_what_failed_is_done_by_the_next_look(machine, what):
    """The controller is told, and nothing is forgotten."""
    error = BpfError("delete from map", "cilium_ct_v1", 12)

    async def body():
        await machine.look()
        machine.backends = {2}
        machine.ct.failure = error if what == "flows" else None
        machine.failure = error if what == "sockets" else None
        with pytest.raises(BpfError):
            await machine.look()
        assert machine.tally.value("flow", "UDP", "fail") == (what == "flows")
        machine.ct.failure = machine.failure = None
        async with asyncio.timeout(SECONDS):
            await machine.terminator.work()
        assert machine.ct.rows == dict([flow(2)])
        assert machine.destroyed == [(UDP, [7]), (UDP, [7])]

    asyncio.run(body())


def test_without_socket_lb_only_flows_end(machine):
    """Nobody's socket is ours."""
    machine.terminator.sockets = False
    machine.backends = {2}
    asyncio.run(machine.look())
    assert (machine.destroyed, len(machine.ct.rows)) == ([], 1)


def test_kernel_that_refuses_the_iterator_is_asked_otherwise(machine, monkeypatch):
    """It has the function, and refuses the programs."""

    class Refused:
        @classmethod
        def load(cls):
            raise BpfError("load", "terminate", 22)

    monkeypatch.setattr(terminate.iterators, "SocketIterator", Refused)
    machine.terminator.by_iterator = True
    machine.backends = {2}
    asyncio.run(machine.look())
    assert machine.destroyed == [(UDP, [7]), (UDP, [7])]
    assert machine.terminator.totals.how == "sock_diag"
