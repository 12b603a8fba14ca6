# SPDX-License-Identifier: Apache-2.0
"""Who leads, by a clock of our own: never two at a time."""

import asyncio
import copy

import pytest

from ciliumd.kubernetes.errors import Conflict, NotFound, Unreachable
from ciliumd.operator.leader import Lease, LostLeadership, Terms

TERMS = Terms(lease=15.0, renew_deadline=10.0, retry=0.001)


class Server:
    """The lease as an API server keeps it; away when it is told to be."""

    def __init__(self):
        self.document = None
        self.version = 0
        self.away = False

    def _check(self):
        if self.away:
            raise Unreachable("get", "leases", 0, "nobody answers")

    async def get(self, _kind, _name, *, namespace):
        """As the client has it."""
        assert namespace == "kube-system"
        self._check()
        if self.document is None:
            raise NotFound("get", "leases", 404, "none")
        return copy.deepcopy(self.document)

    async def create(self, _kind, document):
        """As the client has it."""
        self._check()
        assert self.document is None
        return await self._store(document)

    async def replace(self, _kind, document):
        """As the client has it."""
        self._check()
        if document["metadata"]["resourceVersion"] != str(self.version):
            raise Conflict("update", "leases", 409, "another version")
        return await self._store(document)

    async def _store(self, document):
        self.version += 1
        self.document = copy.deepcopy(document)
        self.document["metadata"]["resourceVersion"] = str(self.version)

    @property
    def holder(self):
        """Who has it."""
        return self.document["spec"]["holderIdentity"]


class Clock:
    """Stands still unless it is moved."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        """Seconds."""
        return self.now


@pytest.fixture
def server():
    """A server without lease."""
    return Server()


@pytest.fixture
def clock():
    """Everybody's clock."""
    return Clock()


def _lease(server, clock, name):
    return Lease(server, "kube-system", name, TERMS, clock=clock)


async def _leads(lease):
    try:
        async with asyncio.timeout(0.02):
            await lease.acquire()
    except TimeoutError:
        return False
    return True


def test_one_leads_and_the_other_waits_out_the_lease(server, clock):
    """A silent leader's lease is over after its duration as the waiting one saw it, not sooner."""

    async def story():
        first, second = _lease(server, clock, "a"), _lease(server, clock, "b")
        assert await _leads(first)
        assert not await _leads(second)
        clock.now += 14.9
        assert not await _leads(second)
        clock.now += 0.2
        assert await _leads(second)
        assert server.holder == "b"
        assert server.document["spec"]["leaseTransitions"] == 1

    asyncio.run(story())


def test_a_renewed_lease_is_waited_for_anew(server, clock):
    """Whatever the leader's own clock says."""

    async def story():
        first, second = _lease(server, clock, "a"), _lease(server, clock, "b")
        assert await _leads(first)
        assert not await _leads(second)
        clock.now += 14.0
        server.document["spec"]["renewTime"] = "1970-01-01T00:00:00.000000Z"
        assert not await _leads(second)
        clock.now += 14.0
        assert not await _leads(second)
        clock.now += 1.1
        assert await _leads(second)

    asyncio.run(story())


def test_a_leader_gives_up_before_the_lease_is_over(server, clock):
    """It cannot know whether its last renewal arrived, so it counts from when it began to ask."""

    async def story():
        lease = _lease(server, clock, "a")
        assert await _leads(lease)
        server.away = True
        holding = asyncio.create_task(lease.hold())
        clock.now += 9.9
        await asyncio.sleep(0.02)
        assert not holding.done()
        clock.now += 0.2
        with pytest.raises(LostLeadership, match="not renewed for 10 s"):
            await holding

    asyncio.run(story())


def test_a_leader_that_renews_goes_on(server, clock):
    """For as long as it does."""

    async def story():
        lease = _lease(server, clock, "a")
        assert await _leads(lease)
        holding = asyncio.create_task(lease.hold())
        for _ in range(10):
            clock.now += 5.0
            before = server.version
            await asyncio.sleep(0.02)
            assert server.version > before
        assert not holding.done()
        holding.cancel()

    asyncio.run(story())


def test_a_lease_that_was_taken_is_lost_at_once(server, clock):
    """Two must not work beside each other."""

    async def story():
        lease = _lease(server, clock, "a")
        assert await _leads(lease)
        server.document["spec"]["holderIdentity"] = "thief"
        with pytest.raises(LostLeadership, match="thief has the lease"):
            await lease.hold()

    asyncio.run(story())


def test_a_lease_that_is_given_back_is_free(server, clock):
    """And only by whom it belongs to."""

    async def story():
        first, second = _lease(server, clock, "a"), _lease(server, clock, "b")
        assert await _leads(first)
        await second.release()
        assert server.holder == "a"
        await first.release()
        assert server.holder == ""
        assert await _leads(second)

    asyncio.run(story())


def test_of_two_that_ask_at_once_one_gets_it(server, clock):
    """The server's versions decide."""

    async def story():
        first, second = _lease(server, clock, "a"), _lease(server, clock, "b")
        assert await _leads(first)
        await first.release()
        read = await server.get(None, "", namespace="kube-system")
        assert await _leads(second)
        with pytest.raises(Conflict):
            await server.replace(None, read)
        assert server.holder == "b"

    asyncio.run(story())
