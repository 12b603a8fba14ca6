# SPDX-License-Identifier: Apache-2.0
"""Rounds of probes: who is asked when, what is kept, and that nobody can hold the others up."""

import asyncio
from ipaddress import ip_address

import pytest

from ciliumd.health import prober as module
from ciliumd.health.hello import Unwell
from ciliumd.health.prober import Prober
from ciliumd.health.selftest import SelfTest
from unit.health.samples import target

SECONDS = 5.0


class Network:
    """Addresses that answer, refuse or stay silent."""

    def __init__(self):
        self.asked = []
        self.silent = set()
        self.errors = {}
        self.at_once = self.most = 0

    async def _ask(self, name, address):
        self.asked.append((name, str(address)))
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            if str(address) in self.silent:
                await asyncio.sleep(SECONDS)
            await asyncio.sleep(0)
            if error := self.errors.get((name, str(address))):
                raise error
            return 0.001
        finally:
            self.at_once -= 1

    async def icmp(self, address):
        """An echo."""
        return await self._ask("icmp", address)

    async def http(self, address):
        """A hello."""
        return await self._ask("http", address)


def run(scenario):
    """Run it, not forever."""

    async def bounded():
        async with asyncio.timeout(SECONDS):
            return await scenario()

    return asyncio.run(bounded())


async def until(condition):
    """Wait for it."""
    while not condition():  # noqa: ASYNC110  what is awaited tells nobody
        await asyncio.sleep(0.001)


def test_a_round_asks_every_address_twice():
    """Both ways, node and endpoint; results by node."""
    network = Network()

    async def scenario():
        seen = []
        made = Prober(network, targets=lambda: (target("a"),), interval=60.0, probed=seen.append)
        await made.probe()
        (found,) = made.results()
        assert found.reachable
        assert seen == [found]
        assert sorted(network.asked) == [
            ("http", "10.0.0.7"),
            ("http", "192.0.2.1"),
            ("icmp", "10.0.0.7"),
            ("icmp", "192.0.2.1"),
        ]

    run(scenario)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (OSError("no route"), "no route"),
        (Unwell("answered '503 Unwell'"), "answered '503 Unwell'"),
    ],
)
def test_why_there_was_no_answer_is_kept(error, text):
    """By address and protocol; the other probes stand."""
    network = Network()
    network.errors["http", "10.0.0.7"] = error

    async def scenario():
        made = Prober(network, targets=lambda: (target("a"),), interval=60.0)
        await made.probe()
        (found,) = made.results()
        assert found.endpoint[0].http.error == text
        assert not found.endpoint[0].icmp.error
        assert found.host_reachable
        assert not found.reachable

    run(scenario)


def test_silence_has_an_end_and_holds_nobody_up():
    """One node is silent, the other's result is there all the same."""
    network = Network()
    network.silent = {"192.0.2.1", "10.0.0.7"}
    both = (target("a"), target("b", host=("192.0.2.2",), endpoint=()))

    async def scenario():
        made = Prober(network, targets=lambda: both, interval=60.0, seconds=0.05)
        await made.probe()
        first, second = made.results()
        assert [check.error for one in first.host for _, check in one.checks] == [module.TIMED_OUT] * 2
        assert second.reachable

    run(scenario)


def test_not_everybody_is_asked_at_once(monkeypatch):
    """A bound on probes under way."""
    monkeypatch.setattr(module, "CONCURRENCY", 3)
    network = Network()
    many = tuple(target(f"n{one}", host=(f"192.0.2.{one}",)) for one in range(1, 20))

    async def scenario():
        made = Prober(network, targets=lambda: many, interval=60.0)
        await made.probe()
        assert len(list(made.results())) == len(many)

    run(scenario)
    assert network.most == 3


def test_new_and_changed_nodes_are_asked_at_once_and_others_are_not():
    """A change of the nodes costs what changed."""
    network = Network()
    current = [target("a", endpoint=())]

    async def scenario():
        made = Prober(network, targets=lambda: current, interval=60.0)
        task = asyncio.create_task(made.run())
        await until(lambda: len(network.asked) == 2)
        current.append(target("b", host=("192.0.2.2",), endpoint=()))
        made.nodes_changed()
        await until(lambda: len(network.asked) == 4)
        await until(lambda: len(list(made.results())) == 2)
        current[0] = target("a", host=("192.0.2.9",), endpoint=())
        assert [one.target.name for one in made.results()] == ["b"]
        made.nodes_changed()
        await until(lambda: len(network.asked) == 6)
        assert {address for _, address in network.asked[4:]} == {"192.0.2.9"}
        del current[:]
        made.nodes_changed()
        assert list(made.results()) == []
        task.cancel()

    run(scenario)


def test_who_did_not_answer_is_asked_again_soon(monkeypatch):
    """Long before the interval; and once it answers, at the interval."""
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.001)
    network = Network()
    network.errors["icmp", "192.0.2.1"] = OSError("no route")

    async def scenario():
        made = Prober(network, targets=lambda: (target("a", endpoint=()),), interval=60.0)
        task = asyncio.create_task(made.run())
        await until(lambda: len(network.asked) >= 6)
        del network.errors["icmp", "192.0.2.1"]
        await until(lambda: next(made.results()).reachable)
        asked = len(network.asked)
        await asyncio.sleep(0.05)
        assert len(network.asked) == asked
        task.cancel()

    run(scenario)


def test_nodes_are_asked_again_at_the_interval():
    """Also when all is well."""
    network = Network()

    async def scenario():
        made = Prober(network, targets=lambda: (target("a", endpoint=()),), interval=0.01)
        task = asyncio.create_task(made.run())
        await until(lambda: len(network.asked) >= 6)
        task.cancel()

    run(scenario)


def test_the_self_test_passes_once_both_probes_do():
    """Until then it says what is missing: an endpoint, an echo, an answer."""
    network = Network()
    address = None
    network.errors["icmp", "10.0.0.7"] = OSError("no route")
    network.errors["http", "10.0.0.7"] = ConnectionRefusedError(111, "Connection refused")

    async def scenario():
        nonlocal address
        made = SelfTest(network, lambda: address)
        task = asyncio.create_task(made.run())
        await asyncio.sleep(0.01)
        assert made.problem == "there is no health endpoint yet"
        address = ip_address("10.0.0.7")
        await until(lambda: made.problem == "ICMP to the health endpoint 10.0.0.7: no route")
        del network.errors["icmp", "10.0.0.7"]
        await until(lambda: made.problem == "HTTP to the health endpoint 10.0.0.7: Connection refused")
        del network.errors["http", "10.0.0.7"]
        await task
        assert made.problem == ""

    run(scenario)
