# SPDX-License-Identifier: Apache-2.0
"""Whatever goes wrong between the command and the agent ends in a sentence, a hint and an exit code."""

import socket

import pytest

from ciliumd.cli.client import DEFAULT_SOCKET, Client, segment, socket_path
from ciliumd.cli.errors import CommandError, NotFoundError


def test_answer_is_decoded_json(agent):
    """GET with a query, PUT with a body, DELETE without an answer."""
    agent.get("thing", {"a": 1})
    agent.answers["PUT /v1/thing"] = {"b": 2}
    agent.answers["DELETE /v1/thing"] = (200, b"")
    client = Client(agent.path)

    assert client.get("thing", to="ns/pod", port=80) == {"a": 1}
    assert client.put("thing", {"x": "y"}) == {"b": 2}
    assert client.delete("thing") is None
    assert agent.requests == [
        ("GET", "/v1/thing?to=ns%2Fpod&port=80", None),
        ("PUT", "/v1/thing", {"x": "y"}),
        ("DELETE", "/v1/thing", None),
    ]


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        ((404, {"error": "no endpoint 9"}), NotFoundError, "no endpoint 9"),
        ((500, {"message": "map is gone"}), CommandError, "map is gone"),
        ((400, "not a pod"), CommandError, "not a pod"),
        ((503, b"starting"), CommandError, "starting"),
        ((500, b""), CommandError, "Internal Server Error"),
    ],
)
def test_refusal_carries_the_agents_reason(agent, answer, kind, reason):
    """Its own words, in whichever of the shapes they come; exit code 1."""
    agent.get("thing", answer)
    with pytest.raises(kind, match=f"GET /v1/thing: {reason}") as caught:
        Client(agent.path).get("thing")

    assert caught.value.code == 1


def test_answer_that_is_no_json_is_an_error(agent):
    """Another server on the socket is noticed."""
    agent.get("thing", (200, b"<html>"))
    with pytest.raises(CommandError, match="not JSON"):
        Client(agent.path).get("thing")


def test_absent_socket_is_unreachable(tmp_path):
    """Exit code 3, the path, and how to start the agent."""
    with pytest.raises(CommandError, match="the socket does not exist") as caught:
        Client(str(tmp_path / "none.sock")).get("healthz")

    assert caught.value.code == 3
    assert "none.sock" in str(caught.value)
    assert "ciliumd agent" in caught.value.hint


def test_socket_nobody_listens_on_is_unreachable(agent):
    """A socket file a dead agent left behind."""
    path = f"{agent.path}.dead"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with pytest.raises(CommandError, match="nobody listens") as caught:
        Client(path).get("healthz")

    assert caught.value.code == 3


def test_agent_that_does_not_answer_is_unreachable(agent):
    """A hanging agent does not hang the command."""
    path = f"{agent.path}.deaf"
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(path)
        deaf.listen()
        with pytest.raises(CommandError, match="no answer in time") as caught:
            Client(path, timeout=0.05).get("healthz")

    assert caught.value.code == 3


@pytest.mark.parametrize(
    ("host", "variable", "path"),
    [
        (None, None, DEFAULT_SOCKET),
        (None, "/run/a.sock", "/run/a.sock"),
        ("/run/b.sock", "/run/a.sock", "/run/b.sock"),
        ("unix:///run/c.sock", None, "/run/c.sock"),
    ],
)
def test_socket_is_chosen_by_option_then_environment(monkeypatch, host, variable, path):
    """-H, then CILIUM_SOCK, then the default."""
    monkeypatch.delenv("CILIUM_SOCK", raising=False)
    if variable:
        monkeypatch.setenv("CILIUM_SOCK", variable)

    assert socket_path(host) == path


def test_other_transports_are_refused():
    """TCP is not spoken."""
    with pytest.raises(CommandError, match="only unix sockets"):
        socket_path("tcp://127.0.0.1:9876")


def test_path_segments_are_quoted():
    """A pod's name is one segment; the colon of a prefix stays readable."""
    assert segment("pod:default/xwing") == "pod:default%2Fxwing"
