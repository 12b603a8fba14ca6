# SPDX-License-Identifier: Apache-2.0
"""The agent's end: requests are done and answered, clients that misbehave harm nobody, nothing leaks."""

import array
import asyncio
import json
import os
import socket
import stat
from pathlib import Path

import pytest
import uvloop
from structlog.testing import capture_logs

from ciliumd.cni import server as module
from ciliumd.cni import wire
from ciliumd.cni.errors import CniError, Code
from ciliumd.cni.result import success
from ciliumd.cni.server import CniServer
from ciliumd.net.namespace import Sandbox
from unit.cni.test_result import MADE

SECONDS = 10.0
CONFIG = {"cniVersion": "1.1.0", "name": "cilium", "type": "cilium-cni"}
ARGUMENTS = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web"


class FakeEndpoints:
    """Remembers what was asked for; *gate* holds attach up, *fail* is what any call raises."""

    def __init__(self):
        self.pods = {}
        self.asked = []
        self.gate = None
        self.fail = None
        self.broken = []

    async def attach(self, attachment, pod, sandbox):
        """Make it."""
        self.asked.append(("attach", attachment, str(pod)))
        if self.gate is not None:
            await self.gate.wait()
        sandbox.close()
        if self.fail:
            raise self.fail
        self.pods[attachment] = MADE
        return MADE

    async def detach(self, attachment):
        """Take it away."""
        self.asked.append(("detach", attachment))
        if self.fail:
            raise self.fail
        self.pods.pop(attachment, None)

    def attached(self, attachment):
        """What was made."""
        return self.pods.get(attachment)

    async def faults(self, attachment, sandbox):
        """What is broken."""
        self.asked.append(("faults", attachment))
        sandbox.close()
        return list(self.broken)

    async def keep_only(self, valid):
        """Collect."""
        self.asked.append(("keep only", valid))


class Agent:
    """A server over fake endpoints, and clients of it."""

    def __init__(self, directory):
        self.endpoints = FakeEndpoints()
        self.path = directory / "run" / "cni.sock"
        self.queue = directory / "queue"
        self.reason = ""
        self.known = asyncio.Event()
        self.known.set()
        self.observed = []
        self.server = CniServer(
            self.path,
            self.endpoints,
            ready=lambda: self.reason,
            wait_for_pod=self.wait_for_pod,
            queue_dir=self.queue,
            observe=lambda *seen: self.observed.append(seen[:2]),
        )

    async def wait_for_pod(self, namespace, name):
        """Known once the test says so."""
        assert (namespace, name) == ("shop", "web")
        await self.known.wait()

    async def connect(self):
        """A client's socket."""
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, str(self.path))
        return client

    async def ask(self, command, config=(), *, descriptors=2, **changes):
        """One request as the executable makes it; code and answer."""
        fields = {
            "command": command,
            "container_id": "c1",
            "netns": "/run/netns/c1",
            "ifname": "eth0",
            "args": ARGUMENTS,
            "path": "",
            "config": CONFIG | dict(config),
            **changes,
        }
        data = json.dumps(fields).encode()
        passed = [os.open("/dev/null", os.O_RDONLY) for _ in range(descriptors)]
        with await self.connect() as client:
            control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", passed))] if passed else []
            client.sendmsg([wire.HEADER.pack(len(data), 0) + data], control)
            wire.close_all(passed)
            return await answer(client)


async def answer(client):
    """What the server says; None when it hangs up."""
    loop = asyncio.get_running_loop()
    received = b""
    while True:
        more = await loop.sock_recv(client, 1 << 16)
        received += more
        if not more:
            break
    if not received:
        return None
    size, code = wire.HEADER.unpack_from(received)
    assert len(received) == wire.HEADER.size + size
    text = received[wire.HEADER.size :]
    return code, json.loads(text) if text else None


class FakeSandbox:
    """Descriptors taken over, of which unprivileged tests have none of the real kind."""

    def __init__(self, path, netns, netlink):
        self.path = path
        self.descriptors = [netns, netlink]

    def close(self):
        """Once."""
        assert self.descriptors
        wire.close_all(self.descriptors)


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request, tmp_path, monkeypatch):
    """Run ``scenario(agent)`` on either loop; no descriptor is left open."""
    monkeypatch.setattr(module.Sandbox, "received", FakeSandbox)

    def run(scenario, *, prepare=None):
        async def timed():
            agent = Agent(tmp_path)
            if prepare is not None:
                prepare(agent)
            async with asyncio.timeout(SECONDS):
                await agent.server.start()
                before = opened()
                try:
                    await scenario(agent)
                    await settled(lambda: opened() == before)
                finally:
                    await agent.server.stop()
            assert not agent.path.exists()

        request.param(timed())

    return run


def opened():
    """How many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def settled(condition):
    """Wait for what other tasks do."""
    while not condition():  # noqa: ASYNC110  what is waited for is elsewhere than in this loop
        await asyncio.sleep(0.005)


def test_an_add_is_done_and_answered(run):
    """In the version of its configuration."""

    async def scenario(agent):
        for version in ("0.3.1", "1.1.0"):
            code, told = await agent.ask("ADD", {"cniVersion": version})
            assert (code, told) == (0, success(MADE, version))
        assert agent.endpoints.asked == [("attach", ("c1", "eth0"), "shop/web")] * 2
        assert agent.observed == [("ADD", 0)] * 2

    run(scenario)


def test_the_socket_is_roots(run):
    """Whoever may write to it may make pods."""

    async def scenario(agent):
        assert stat.S_IMODE(agent.path.stat().st_mode) == 0o600

    run(scenario)


def test_an_add_waits_until_its_pod_is_known(run):
    """Labels decide what it may do."""

    async def scenario(agent):
        agent.known.clear()
        adding = asyncio.ensure_future(agent.ask("ADD"))
        await asyncio.sleep(0.05)
        assert agent.endpoints.asked == []
        agent.known.set()
        assert (await adding)[0] == 0

    run(scenario)


def test_an_add_of_a_pod_nobody_knows_is_to_be_tried_again(run, monkeypatch):
    """Code 11, with its name."""
    monkeypatch.setattr(module, "POD_SECONDS", 0.05)

    async def scenario(agent):
        agent.known.clear()
        code, told = await agent.ask("ADD")
        assert (code, told["code"]) == (11, 11)
        assert "shop/web" in told["msg"]

    run(scenario)


def test_an_add_without_its_namespace_is_refused(run):
    """Or with more than that."""

    async def scenario(agent):
        for number in (0, 1, 3, 8):
            assert (await agent.ask("ADD", descriptors=number))[0] == Code.INVALID_ENVIRONMENT
        assert agent.endpoints.asked == []

    run(scenario)


def test_a_del_comes_after_the_add_of_the_same_container(run):
    """The runtime gave the ADD up; its pod must not stay."""

    async def scenario(agent):
        agent.endpoints.gate = asyncio.Event()
        adding = asyncio.ensure_future(agent.ask("ADD"))
        await settled(lambda: agent.endpoints.asked)
        deleting = asyncio.ensure_future(agent.ask("DEL", descriptors=0))
        other = await agent.ask("DEL", descriptors=0, container_id="c2")
        assert other == (0, None)
        agent.endpoints.gate.set()
        assert (await adding)[0] == 0
        assert await deleting == (0, None)
        assert agent.endpoints.pods == {}
        assert agent.endpoints.asked[-1] == ("detach", ("c1", "eth0"))

    run(scenario)


def test_a_check_answers_nothing_or_what_is_wrong(run):
    """First from memory, then from the kernel."""

    async def scenario(agent):
        await agent.ask("ADD")
        previous = {"prevResult": success(MADE, "1.1.0")}
        assert await agent.ask("CHECK", previous) == (0, None)
        agent.endpoints.broken = ["a route is gone", "a row is gone"]
        code, told = await agent.ask("CHECK", previous)
        assert (code, told["msg"]) == (102, "a route is gone; a row is gone")
        assert (await agent.ask("CHECK", previous, container_id="c9"))[0] == 102
        assert (await agent.ask("CHECK"))[0] == Code.INVALID_CONFIG

    run(scenario)


def test_a_status_is_an_error_until_pods_can_be_made(run):
    """Code 50 with the reason."""

    async def scenario(agent):
        assert await agent.ask("STATUS", descriptors=0) == (0, None)
        agent.reason = "manifests are not read yet"
        code, told = await agent.ask("STATUS", descriptors=0)
        assert (code, told["msg"]) == (50, "no pod can be made: manifests are not read yet")

    run(scenario)


def test_a_gc_keeps_what_is_valid(run):
    """By container and device."""

    async def scenario(agent):
        valid = {"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}
        assert await agent.ask("GC", valid, descriptors=0) == (0, None)
        assert agent.endpoints.asked == [("keep only", {("c1", "eth0")})]

    run(scenario)


def test_failures_are_told_with_their_code(run):
    """And a bug as an internal error, with its text in the log only."""

    async def scenario(agent):
        agent.endpoints.fail = CniError(Code.ADD_FAILED, "no free address", details="delete some")
        code, told = await agent.ask("ADD", {"cniVersion": "0.4.0"})
        assert code == 100
        assert told == {
            "cniVersion": "0.4.0",
            "code": 100,
            "msg": "no free address",
            "details": "delete some",
        }
        agent.endpoints.fail = ZeroDivisionError("secret")
        with capture_logs() as logs:
            code, told = await agent.ask("DEL", descriptors=0)
        assert (code, "secret" in str(told)) == (103, False)
        assert [one["event"] for one in logs] == ["cni.request_failed"]
        assert agent.observed == [("ADD", 100), ("DEL", 103)]

    run(scenario)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\0\0",
        wire.HEADER.pack(10, 0) + b"short",
        wire.HEADER.pack(wire.REQUEST_MAX + 1, 0),
        wire.HEADER.pack(4, 7) + b"data",
        wire.HEADER.pack(1, 0) + b"longer",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_a_client_that_does_not_speak_the_protocol_is_hung_up_on(run, frame):
    """What it passed is closed, and the next one is served."""

    async def scenario(agent):
        with await agent.connect() as client:
            null = os.open("/dev/null", os.O_RDONLY)
            control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null]))]
            client.sendmsg([frame], control if frame else [])
            os.close(null)
            client.shutdown(socket.SHUT_WR)
            with capture_logs() as logs:
                assert await answer(client) is None
            assert [one["event"] for one in logs] == ["cni.bad_client"]
        assert await agent.ask("STATUS", descriptors=0) == (0, None)

    run(scenario)


def test_what_is_no_request_is_answered(run):
    """In the newest version: its own cannot be known."""

    async def scenario(agent):
        with await agent.connect() as client:
            client.send(wire.HEADER.pack(2, 0) + b"{}")
            code, told = await answer(client)
        assert (code, told["cniVersion"]) == (6, "1.1.0")

    run(scenario)


def test_slow_clients_are_hung_up_on_while_others_are_served(run, monkeypatch):
    """However many there are."""
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.2)
    monkeypatch.setattr(module, "CLIENTS_MAX", 20)

    async def scenario(agent):
        slow = [await agent.connect() for _ in range(50)]
        slow[0].send(b"\0")
        assert (await agent.ask("ADD"))[0] == 0
        for client in slow:
            with client:
                assert await answer(client) is None

    run(scenario)


def test_more_descriptors_than_any_request_has_are_refused(run):
    """None stays open."""

    async def scenario(agent):
        assert await agent.ask("ADD", descriptors=20) is None

    run(scenario)


def test_a_client_that_is_killed_does_not_stop_what_it_asked_for(run):
    """The runtime's DEL comes later."""

    async def scenario(agent):
        agent.endpoints.gate = asyncio.Event()
        adding = asyncio.ensure_future(agent.ask("ADD"))
        await settled(lambda: agent.endpoints.asked)
        adding.cancel()
        await asyncio.sleep(0)
        agent.endpoints.gate.set()
        await settled(lambda: agent.endpoints.pods)
        assert await agent.ask("DEL", descriptors=0) == (0, None)
        assert agent.endpoints.pods == {}

    run(scenario)


def test_what_was_queued_is_deleted_at_the_start_and_later(run):
    """What fails stays for the next time."""

    def prepare(agent):
        agent.queue.mkdir()
        (agent.queue / "c1:eth0").touch()

    async def scenario(agent):
        assert agent.endpoints.asked == [("detach", ("c1", "eth0"))]
        assert list(agent.queue.iterdir()) == []
        (agent.queue / "c2:eth0").touch()
        agent.endpoints.fail = CniError(Code.DEL_FAILED, "not now")
        await agent.server.replay_queue()
        assert [one.name for one in agent.queue.iterdir()] == ["c2:eth0"]
        agent.endpoints.fail = None
        await agent.server.replay_queue()
        assert list(agent.queue.iterdir()) == []

    run(scenario, prepare=prepare)


def test_a_socket_of_an_earlier_agent_is_no_obstacle(run):
    """It was killed."""

    def prepare(agent):
        agent.path.parent.mkdir()
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(agent.path))

    async def scenario(agent):
        assert await agent.ask("STATUS", descriptors=0) == (0, None)

    run(scenario, prepare=prepare)


def test_descriptors_that_are_no_namespace_are_closed():
    """Whatever they are."""
    for kind in (socket.AF_UNIX, socket.AF_NETLINK):
        before = opened()
        netns, other = os.open("/dev/null", os.O_RDONLY), socket.socket(kind, socket.SOCK_DGRAM)
        with pytest.raises(module.NamespaceGone, match="no network namespace"):
            Sandbox.received("/run/netns/x", netns, other.detach())
        with pytest.raises(module.NamespaceGone, match="no socket"):
            Sandbox.received("/x", os.open("/dev/null", os.O_RDONLY), os.open("/dev/null", os.O_RDONLY))
        assert opened() == before
