# SPDX-License-Identifier: Apache-2.0
"""What load balancers are told of a node's endpoints, as kube-proxy tells it."""

import asyncio
import socket
from contextlib import closing

import aiohttp
import pytest

from ciliumd.health.services import Answer, ProxyHealthz, ServiceHealthServers
from unit.health.test_hello import free_port

SECONDS = 10.0
WEB = Answer("shop", "web", 2)


async def ask(port, path="/"):
    """Status, headers and body."""
    async with (
        asyncio.timeout(SECONDS),
        aiohttp.ClientSession() as client,
        client.get(f"http://127.0.0.1:{port}{path}") as answer,
    ):
        return answer.status, answer.headers, await answer.json()


def served(scenario, *, healthy=True):
    """Run *scenario* with servers."""

    async def body():
        servers = ServiceHealthServers(lambda: healthy)
        try:
            await scenario(servers)
        finally:
            await servers.stop()

    asyncio.run(body())


@pytest.mark.parametrize("path", ["/", "/healthz", "/any/thing"])
def test_a_node_with_endpoints_is_good(path):
    """Whatever the path; the weight is how many there are."""

    async def scenario(servers):
        port = free_port()
        await servers.serve({port: WEB})
        status, headers, body = await ask(port, path)
        assert status == 200
        assert headers["X-Load-Balancing-Endpoint-Weight"] == "2"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Type"].startswith("application/json")
        assert body == {
            "service": {"namespace": "shop", "name": "web"},
            "localEndpoints": 2,
            "serviceProxyHealthy": True,
        }

    served(scenario)


def test_a_node_without_is_not():
    """It may come and go on the same port, without a moment in which nobody listens."""

    async def scenario(servers):
        port = free_port()
        await servers.serve({port: Answer("shop", "web", 0)})
        status, headers, body = await ask(port)
        assert (status, headers["X-Load-Balancing-Endpoint-Weight"], body["localEndpoints"]) == (503, "0", 0)
        await servers.serve({port: WEB})
        assert (await ask(port))[0] == 200

    served(scenario)


def test_a_node_that_does_not_serve_services_is_not():
    """Although it has endpoints."""

    async def scenario(servers):
        port = free_port()
        await servers.serve({port: WEB})
        status, _, body = await ask(port)
        assert (status, body["localEndpoints"], body["serviceProxyHealthy"]) == (503, 2, False)

    served(scenario, healthy=False)


def test_each_service_has_its_port_for_as_long_as_it_wants_one():
    """A port that is given up is closed."""

    async def scenario(servers):
        one, two = free_port(), free_port()
        await servers.serve({one: WEB, two: Answer("shop", "api", 1)})
        assert (await ask(one))[2]["service"]["name"] == "web"
        assert (await ask(two))[2]["service"]["name"] == "api"
        await servers.serve({two: Answer("shop", "api", 1)})
        assert (await ask(two))[0] == 200
        with pytest.raises(aiohttp.ClientConnectorError):
            await ask(one)

    served(scenario)


def test_a_port_that_is_taken_is_named_and_holds_up_no_other():
    """It is tried again, and had when it is free."""

    async def scenario(servers):
        with closing(socket.socket()) as taken:
            taken.bind(("0.0.0.0", 0))
            taken.listen()
            port, other = taken.getsockname()[1], free_port()
            with pytest.raises(OSError, match=f"{port} of shop/web"):
                await servers.serve({port: WEB, other: Answer("shop", "api", 1)})
            assert (await ask(other))[0] == 200
        await servers.serve({port: WEB, other: Answer("shop", "api", 1)})
        assert (await ask(port))[0] == 200

    served(scenario)


@pytest.mark.parametrize("healthy", [True, False])
@pytest.mark.parametrize("host", ["127.0.0.1", ""])
def test_kube_proxys_healthz(healthy, host):
    """Who is well is up to date now; who is not says since when."""

    async def scenario():
        port = free_port()
        server = ProxyHealthz(
            f"{host}:{port}", healthy=lambda: healthy, updated=lambda: "before", now=lambda: "now"
        )
        await server.start()
        try:
            status, headers, body = await ask(port, "/healthz")
        finally:
            await server.stop()
        assert status == (200 if healthy else 503)
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert body == {
            "lastUpdated": "now" if healthy else "before",
            "currentTime": "now",
            "nodeEligible": True,
        }

    asyncio.run(scenario())


def test_no_address_is_no_server():
    """As by default."""

    async def scenario():
        server = ProxyHealthz("", healthy=bool, updated=str, now=str)
        await server.start()
        await server.stop()

    asyncio.run(scenario())
