# SPDX-License-Identifier: Apache-2.0
"""Who plays in the policy tests: a server, a friend, a stranger, a foreigner; and who reaches whom."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from lab import manifests
from lab.node import Node
from lab.pod import Pod
from lab.world import World

SERVER = {"matchLabels": {"app": "server"}}
FRIEND = {"matchLabels": {"app": "friend"}}


class Cast(NamedTuple):
    """Who plays: a server on 80 and 81, a friend and a stranger, and a foreigner of another namespace."""

    server: Pod
    friend: Pod
    stranger: Pod
    foreigner: Pod


@pytest.fixture(scope="module")
def cast(node: Node, world: World) -> Cast:
    """The pods, and a far server on 80/TCP and 81/TCP."""
    for port in (80, 81):
        world.actor.call("serve_tcp", name="far", port=port, address=world.far)
    node.apply("namespaces", manifests.namespace("default"), manifests.namespace("abroad", {"side": "other"}))
    return Cast(
        node.pod("server", {"app": "server"}).serve(tcp=(80, 81), udp=(53, 54)),
        node.pod("friend", {"app": "friend"}).serve(tcp=(80,)),
        node.pod("stranger", {"app": "stranger"}).serve(tcp=(80,)),
        node.pod("foreigner", {"app": "friend"}, namespace="abroad"),
    )


@contextmanager
def in_force(node: Node, *policies: manifests.Object) -> Iterator[None]:
    """Policies that every endpoint runs within this block, and none after it."""
    node.apply_policy("policy", *policies)
    try:
        yield
    finally:
        node.delete_policy("policy")


def who_reaches(cast: Cast, port: int) -> set[str]:
    """Pods that get an answer of the server on a TCP port."""
    return {pod.name for pod in cast[1:] if pod.reaches(cast.server.address, port)}


EVERYBODY = {"friend", "stranger", "foreigner"}
