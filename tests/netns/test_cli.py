# SPDX-License-Identifier: Apache-2.0
"""Every command of ``cilium`` on a running agent, as a table and as JSON."""

import json
from typing import Any

import pytest

from ciliumd.cli.errors import CommandError
from lab import manifests
from lab.node import Node
from lab.pod import Pod
from lab.waiting import eventually

pytestmark = pytest.mark.netns

VIP = "10.96.0.40"


@pytest.fixture(scope="module")
def pods(node: Node) -> tuple[Pod, Pod]:
    """Two pods that have talked, through a service and under a policy."""
    web = node.pod("web", {"app": "web"}).serve(tcp=(8080,))
    client = node.pod("client", {"app": "client"})
    node.apply("service", manifests.service("web", VIP, {"app": "web"}, ports=[("TCP", 80, 8080)]))
    node.wait_service(f"{VIP}:80", 1)
    node.apply_policy(
        "policy",
        manifests.cilium_policy(
            "web",
            {
                "endpointSelector": {"matchLabels": {"app": "web"}},
                "ingress": [
                    {
                        "fromEndpoints": [{"matchLabels": {"app": "client"}}],
                        "toPorts": manifests.to_ports((8080, "TCP")),
                    }
                ],
            },
        ),
    )
    assert client.reaches(VIP, 80)
    return web, client


def both(node: Node, *command: str) -> tuple[str, Any]:
    """Output of a command as a table and as JSON."""
    return node.agent.cilium(*command), node.agent.cilium_json(*command)


def test_status(node: Node, pods: tuple[Pod, Pod]) -> None:
    """The lines every user looks for, and one word when asked to be brief."""
    del pods
    table, model = both(node, "status")
    lines = {line.split(":")[0]: line for line in table.splitlines() if ":" in line}

    assert lines["Cilium"].split()[1] == "Ok"
    assert "4/254" in lines["IPAM"] or "3/254" in lines["IPAM"], lines["IPAM"]
    assert "BPF" in lines["Masquerading"]
    assert "healthy" in lines["Controller Status"]
    assert lines["Encryption"].split()[1] == "Disabled"
    assert model["cilium"]["state"] == "Ok"
    assert node.agent.cilium("status", "--brief").strip() == "OK"
    assert len(node.agent.cilium("status", "--verbose")) > len(table)


def test_endpoint_list(node: Node, pods: tuple[Pod, Pod]) -> None:
    """Both pods with address, labels and enforcement."""
    table, model = both(node, "endpoint", "list")

    assert {one["id"] for one in model} == {pod.id for pod in pods}
    for pod in pods:
        assert pod.address in table
        assert f"k8s:app={pod.name}" in table
    (row,) = [line for line in table.splitlines() if pods[0].address in line]
    assert "Enabled" in row
    assert "ready" in row
    assert node.agent.cilium_json("endpoint", "get", str(pods[0].id))[0]["id"] == pods[0].id
    assert "Overall Health:   OK\n" in node.agent.cilium("endpoint", "health", str(pods[0].id))
    assert node.agent.cilium("endpoint", "labels", str(pods[0].id)).startswith("k8s:app=web\n")


def test_identity_list(node: Node, pods: tuple[Pod, Pod]) -> None:
    """Reserved identities by their fixed numbers, and those of the pods."""
    table, model = both(node, "identity", "list")
    by_label = {label: one["id"] for one in model for label in one["labels"]}

    assert by_label["reserved:host"] == 1
    assert by_label["reserved:world"] == 2
    for pod in pods:
        assert by_label[f"k8s:app={pod.name}"] >= 256
        assert f"k8s:app={pod.name}" in table


def test_service_list_and_get(node: Node, pods: tuple[Pod, Pod]) -> None:
    """The frontend with its backend; one by its id in the documented JSON."""
    table, model = both(node, "service", "list")
    (service,) = [one for one in model if one["spec"]["frontend-address"]["ip"] == VIP]
    number = service["spec"]["id"]
    one = node.agent.cilium_json("service", "get", str(number))

    assert f"{VIP}:80/TCP" in table
    assert "ClusterIP" in table
    assert f"1 => {pods[0].address}:8080/TCP (active)" in table
    assert one["spec"]["id"] == number
    assert one["spec"]["flags"]["name"] == "web"
    assert one["spec"]["frontend-address"]["port"] == 80
    assert one["status"]["realized"]["backend-addresses"][0]["ip"] == pods[0].address


def test_policy_get(node: Node, pods: tuple[Pod, Pod]) -> None:
    """The policy and the revision."""
    del pods
    table, model = both(node, "policy", "get")

    assert '"web"' in table
    assert f"Revision: {model['revision']}" in table
    assert [one["name"] for one in model["policy"]] == ["web"]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("bpf", "endpoint", "list"), ["{web}", "{client}", "localhost"]),
        (("bpf", "ipcache", "list"), ["{web}", "{client}"]),
        (("bpf", "lb", "list"), [f"{VIP}:80", "{web}:8080"]),
        (("bpf", "ct", "list"), ["{web}", "{client}"]),
        (("bpf", "policy", "list"), ["8080"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bpf_lists(node: Node, pods: tuple[Pod, Pod], command: tuple[str, ...], expected: list[str]) -> None:
    """Rows of live maps in readable form."""
    addresses = {pod.name: pod.address for pod in pods}
    table, model = both(node, *command)

    assert model
    for text in expected:
        assert text.format(**addresses) in table, table


def test_map_list_and_get(node: Node, pods: tuple[Pod, Pod]) -> None:
    """Maps by name with their fill, and rows of one."""
    table, _ = both(node, "map", "list")
    rows = node.agent.cilium_json("map", "get", "lxc")

    assert "cilium_ct_v1" in table
    assert pods[0].address in json.dumps(rows)


def test_node_and_ip_list(node: Node, pods: tuple[Pod, Pod]) -> None:
    """The node itself, also where nobody published it; and whose every address is."""
    table, model = both(node, "node", "list")
    addresses, entries = both(node, "ip", "list")

    assert node.address in table
    assert [one["primary-address"]["ipv4"]["alloc-range"] for one in model] == [node.pod_cidr]
    for pod in pods:
        assert f"k8s:app={pod.name}" in addresses
        assert f"{pod.address}/32" in {one["cidr"] for one in entries}


def test_connections_are_flushed_and_made_again(node: Node, pods: tuple[Pod, Pod]) -> None:
    """None is left, new ones come up, and what the agent keeps cannot be flushed."""
    web, client = pods
    said = node.agent.cilium("bpf", "ct", "flush", "global")

    assert int(said.split()[1]) > 0
    assert web.address not in node.agent.cilium("bpf", "ct", "list", "global")
    assert client.reaches(VIP, 80)
    assert web.address in node.agent.cilium("bpf", "ct", "list", "global")
    with pytest.raises(CommandError, match="cilium_lxc_v1 cannot be flushed"):
        node.agent.client.delete("map/cilium_lxc_v1")


def test_metrics_list(node: Node, pods: tuple[Pod, Pod]) -> None:
    """Forwarded packets and map pressure are among the samples, and on the Prometheus port."""
    del pods
    names = {row["name"] for row in node.agent.get("metrics")}
    page = node.outside.call("http_request", address="127.0.0.1", port=9962, path="/metrics")

    assert {"cilium_forward_count_total", "cilium_bpf_map_pressure"} <= names
    assert page["outcome"] == "answered"
    assert "cilium_forward_count_total" in page["body"]


def test_config_and_version(node: Node) -> None:
    """Settings in force, and what answers."""
    assert node.pod_cidr in node.agent.cilium("config", "--all")
    assert node.agent.cilium("version").strip()


def test_command_that_does_not_exist(node: Node) -> None:
    """A slip of the finger is answered with what was meant."""
    done = node.agent.cli("endpont", "list", check=False)

    assert done.returncode != 0
    assert "endpoint" in done.stderr


def test_endpoint_commands_of_ciliumd(node: Node, pods: tuple[Pod, Pod]) -> None:
    """``ciliumd endpoint add`` prints number and address, twice the same; ``del`` takes it away."""
    del pods
    from lab.netns import Namespace

    with Namespace("pod-manual") as netns:
        node.apply("pod-default-manual", manifests.pod("manual", {"app": "manual"}))

        def ciliumd(*words: str) -> str:
            return node.agent.cli("endpoint", *words, program="ciliumd.cli.ciliumd").stdout

        first = ciliumd("add", str(netns.path), "--pod", "default/manual")
        again = ciliumd("add", str(netns.path), "--pod", "default/manual")
        listed = "k8s:app=manual" in node.agent.cilium("endpoint", "list")
        removed = ciliumd("del", "default/manual")

        assert first == again
        assert "default/manual 10.11.0." in first
        assert listed
        assert "removed" in removed
        eventually(lambda: "eth0" not in netns.links(), "its device is deleted behind the answer")
        assert "manual" not in json.dumps(node.agent.get("endpoint"))
        node.delete("pod-default-manual")
