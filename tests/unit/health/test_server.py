# SPDX-License-Identifier: Apache-2.0
"""Probes of the kubelet: which of them fails for what."""

import asyncio

import aiohttp
import pytest

from ciliumd.health.server import HealthzServer
from unit.health.test_hello import free_port

SECONDS = 5.0
BRIEF = {"brief": "true"}
LIVENESS = {**BRIEF, "require-k8s-connectivity": "false"}


def ask(headers, *, unready="", lifeless="", path="/healthz"):
    """Status and text of a probe with *headers*."""

    async def says(text):
        return text

    async def scenario():
        port = free_port()
        server = HealthzServer(port, unready=lambda: says(unready), lifeless=lambda: lifeless)
        await server.start()
        try:
            async with (
                asyncio.timeout(SECONDS),
                aiohttp.ClientSession() as client,
                client.get(f"http://127.0.0.1:{port}{path}", headers=headers) as answer,
            ):
                return answer.status, await answer.text()
        finally:
            await server.stop()

    return asyncio.run(scenario())


@pytest.mark.parametrize("headers", [{}, BRIEF, {**BRIEF, "require-k8s-connectivity": "true"}])
def test_readiness_fails_for_any_trouble(headers):
    """With the reason as text."""
    assert ask(headers) == (200, "OK\n")
    assert ask(headers, unready="waiting for manifests") == (503, "waiting for manifests\n")


def test_liveness_fails_only_for_what_a_restart_mends():
    """A lost API server or a full map must not end the agent."""
    assert ask(LIVENESS, unready="no connection to https://192.0.2.1:6443") == (200, "OK\n")
    assert ask(LIVENESS, lifeless="netlink thread has ended") == (503, "netlink thread has ended\n")


def test_other_paths_are_nobodys():
    """One path."""
    assert ask(BRIEF, path="/metrics")[0] == 404
