# SPDX-License-Identifier: Apache-2.0
"""``cilium-health`` prints what Cilium prints of the same answer."""

import json

import pytest

from ciliumd.cli import health

PROBED = "2018-06-16T09:51:58Z"


def path(address, icmp, http, *, error=""):
    """A probed address; latencies in nanoseconds."""
    return {
        "ip": address,
        "icmp": {"status": error, "latency": icmp, "lastProbed": PROBED},
        "http": {"status": error, "latency": http, "lastProbed": PROBED},
    }


def side(primary, *secondary):
    """A node's addresses of one kind."""
    return {"primary-address": primary, "secondary-addresses": list(secondary)}


REPORT = {
    "local": {"name": "cilium/node2"},
    "timestamp": PROBED,
    "probeInterval": "60s",
    "nodes": [
        {
            "name": "cilium/node1",
            "host": side(path("172.0.117.198", 1009679, 1808628)),
            "health-endpoint": side(path("10.2.1.234", 0, 0, error="Connection timed out")),
        },
        {
            "name": "cilium/node2",
            "host": side(path("172.0.52.116", 315254, 368579), path("172.0.52.117", 1000, 2000000)),
            "health-endpoint": side(path("10.2.0.183", 190658, 536665)),
        },
    ],
}
TEXT = """\
Probe time:   2018-06-16T09:51:58Z
Nodes:
  cilium/node2 (localhost):
    Host connectivity to 172.0.52.116:
      ICMP to stack:   OK, RTT=315.254µs
      HTTP to agent:   OK, RTT=368.579µs
    Secondary Host connectivity to 172.0.52.117:
      ICMP to stack:   OK, RTT=1µs
      HTTP to agent:   OK, RTT=2ms
    Endpoint connectivity to 10.2.0.183:
      ICMP to stack:   OK, RTT=190.658µs
      HTTP to agent:   OK, RTT=536.665µs
  cilium/node1:
    Host connectivity to 172.0.117.198:
      ICMP to stack:   OK, RTT=1.009679ms
      HTTP to agent:   OK, RTT=1.808628ms
    Endpoint connectivity to 10.2.1.234:
      ICMP to stack:   Connection timed out
      HTTP to agent:   Connection timed out
"""


@pytest.fixture
def ask(agent, capsys):
    """Run ``cilium-health`` against the fake agent; code and output."""
    agent.get("health", REPORT)
    agent.answers["PUT /v1/health/probe"] = {**REPORT, "timestamp": "2018-06-16T09:53:00Z"}

    def run(*words):
        code = health.main([*words, "-H", agent.path])
        return code, capsys.readouterr().out

    return run


def test_status_reads_as_ciliums(ask):
    """The local node first, every probe of every address."""
    assert ask("status") == (0, TEXT)


def test_json_is_the_answer(ask):
    """As clients of Cilium read it: an empty status is well."""
    code, text = ask("status", "-o=json")
    assert code == 0
    assert json.loads(text) == REPORT


@pytest.mark.parametrize("words", [("status", "--probe"), ("ping",)])
def test_a_probe_is_made_when_asked_for(ask, words):
    """The time is the new round's."""
    assert ask(*words)[1].startswith("Probe time:   2018-06-16T09:53:00Z\n")


def test_succinct_is_a_line_for_each_node(ask):
    """How many addresses answer; a node without any is unavailable."""
    _, text = ask("status", "--succinct")
    rows = [line.split() for line in text.splitlines()]
    assert rows == [
        ["Cluster", "health:", "1/2", "reachable", f"({PROBED})"],
        ["Name", "IP", "Node", "Endpoints"],
        ["cilium/node2", "(localhost)", "172.0.52.116,172.0.52.117", "2/2", "1/1"],
        ["cilium/node1", "172.0.117.198", "1/1", "0/1"],
    ]
    bare = {**REPORT, "nodes": [{"name": "x", "host": side(None), "health-endpoint": None}]}
    assert health.succinct(bare).splitlines()[-1].split() == ["x", "Unavailable", "0/0", "0/0"]
    assert "0/1 reachable" in health.succinct(bare)


def test_get_shows_the_agent_and_the_load(ask, agent):
    """The node's load above the agent's own status."""
    agent.get("healthz", {"cilium": {"state": "Ok", "msg": "m"}})
    code, text = ask("get")
    assert code == 0
    assert text.startswith("Node load:   ")
    assert "Cilium:                 Ok   m\n" in text
    assert json.loads(ask("get", "-o", "json")[1])["cilium"] == {"cilium": {"state": "Ok", "msg": "m"}}


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (999, "999ns"),
        (1_000, "1µs"),
        (315_254, "315.254µs"),
        (1_009_679, "1.009679ms"),
        (10_000_001, "10.000001ms"),
        (1_500_000_000, "1.5s"),
    ],
)
def test_durations_are_gos(nanoseconds, text):
    """``time.Duration.String`` below a minute."""
    assert health.duration(nanoseconds) == text
