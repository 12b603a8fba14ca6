# SPDX-License-Identifier: Apache-2.0
"""Bad input: the error says what, where and what to do; everything else goes on; it is counted."""

import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ciliumd.cli.errors import CommandError
from lab.manifests import cilium_policy, to_ports
from lab.netns import Namespace
from lab.node import Node
from lab.pod import Pod
from lab.process import run
from lab.waiting import eventually
from lab.world import World

pytestmark = pytest.mark.netns

BPFTOOL = shutil.which("bpftool") or "/usr/sbin/bpftool"
CAPSH_DROP = "-bpf,-sys_admin"


def refusals(node: Node) -> float:
    """How many objects were refused since the agent started."""
    return sum(
        row["value"] for row in node.agent.get("metrics") if row["name"] == "ciliumd_resource_errors_total"
    )


@pytest.fixture(scope="module")
def pods(node: Node) -> tuple[Pod, Pod]:
    """Two pods that talk."""
    return node.pod("server", {"app": "server"}).serve(tcp=(80,)), node.pod("client", {"app": "client"})


@pytest.fixture
def written(node: Node) -> Iterator[Callable[[str], None]]:
    """Write ``bad.yaml``; it is removed afterwards and its problem with it."""
    yield lambda text: void(node.write("bad", text))
    node.delete("bad")
    eventually(lambda: not node.problems(), "no problem is left when its file is gone")


def void(_: object) -> None:
    """Nothing."""


def still_served(node: Node, pods: tuple[Pod, Pod]) -> None:
    """Other files are still followed and pods still talk."""
    server, client = pods
    node.apply_policy(
        "good",
        cilium_policy("good", {"endpointSelector": {"matchLabels": {"app": "server"}}, "ingress": [{}]}),
    )
    assert not client.reaches(server.address, 80)
    node.delete_policy("good")
    assert client.reaches(server.address, 80)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: [unclosed\nmetadata: {}\n", ["bad.yaml:2", "expected"]),
        ("- just\n- a list\n", ["bad.yaml"]),
        ("apiVersion: v1\nkind: Teapot\nmetadata:\n  name: short\n", ["bad.yaml", "Teapot"]),
        ("apiVersion: v1\nmetadata:\n  name: nameless\n", ["bad.yaml", "kind"]),
    ],
    ids=["malformed", "no-object", "unknown-kind", "no-kind"],
)
def test_file_that_is_no_manifest_is_named(
    node: Node, pods: tuple[Pod, Pod], written: Callable[[str], None], text: str, words: list[str]
) -> None:
    """The log and the count tell of the file; others are served."""
    before, mark = refusals(node), len(node.agent.log_text())
    written(text)
    eventually(lambda: refusals(node) > before, "the refusal is counted")
    said = [line for line in node.agent.log_text()[mark:].splitlines() if "bad.yaml" in line]

    assert said, node.agent.log_tail()
    for word in words:
        assert word in said[0], said
    still_served(node, pods)


BAD_SPECS: dict[str, tuple[dict[str, Any], str]] = {
    "cidr": (
        {"endpointSelector": {}, "ingress": [{"fromCIDR": ["10.0.0.0/99"]}]},
        r"spec\.ingress\[0\]\.fromCIDR\[0\]",
    ),
    "selector": (
        {"endpointSelector": {"matchExpressions": [{"key": "app", "operator": "Near", "values": ["x"]}]}},
        r"spec\.endpointSelector\.matchExpressions\[0\]\.operator",
    ),
    "port": (
        {"endpointSelector": {}, "ingress": [{"toPorts": to_ports((70000, "TCP"))}]},
        r"spec\.ingress\[0\]\.toPorts\[0\]\.ports\[0\]\.port",
    ),
    "protocol": (
        {"endpointSelector": {}, "ingress": [{"toPorts": to_ports((80, "QUIC"))}]},
        r"spec\.ingress\[0\]\.toPorts\[0\]\.ports\[0\]\.protocol",
    ),
    "misspelt": ({"endpointSelector": {}, "ingres": []}, r"spec\.ingres"),
    "fqdn": ({"endpointSelector": {}, "egress": [{"toFQDNs": [{"matchName": "example.org"}]}]}, r"toFQDNs"),
    "node": ({"nodeSelector": {}, "ingress": [{}]}, r"nodeSelector"),
    "auth": (
        {
            "endpointSelector": {},
            "ingress": [{"authentication": {"mode": "required"}, "fromEndpoints": [{}]}],
        },
        r"authentication",
    ),
}


@pytest.mark.parametrize("case", BAD_SPECS)
def test_policy_with_a_bad_field_is_refused_by_its_name(node: Node, pods: tuple[Pod, Pod], case: str) -> None:
    """The problem names policy, field and file; nothing of the policy is applied."""
    server, client = pods
    spec, field = BAD_SPECS[case]
    before = refusals(node)
    node.apply("bad", cilium_policy("broken", spec))
    (problem,) = eventually(node.problems, "the problem is listed")
    reached = client.reaches(server.address, 80)
    node.delete("bad")
    eventually(lambda: not node.problems(), "the problem is gone with the file")

    assert (problem["kind"], problem["namespace"], problem["name"]) == (
        "CiliumNetworkPolicy",
        "default",
        "broken",
    )
    assert re.search(field, problem["field"]), problem
    assert problem["message"]
    assert "bad.yaml" in problem["file"]
    assert reached
    assert refusals(node) > before


def test_edit_that_breaks_a_policy_keeps_the_last_good_one(node: Node, pods: tuple[Pod, Pod]) -> None:
    """A slip in an edit does not open what the policy closed."""
    server, client = pods
    good = cilium_policy("guard", {"endpointSelector": {"matchLabels": {"app": "server"}}, "ingress": [{}]})
    bad = cilium_policy("guard", {"endpointSelector": {}, "ingress": [{"fromCIDR": ["nowhere"]}]})
    node.apply_policy("guard", good)
    assert not client.reaches(server.address, 80)
    node.apply("guard", bad)
    eventually(node.problems, "the problem is listed")
    assert not client.reaches(server.address, 80)
    node.delete_policy("guard")
    eventually(lambda: client.reaches(server.address, 80), "without the policy the pod is open")
    assert node.problems() == []


def test_broken_document_keeps_the_others_of_its_file(node: Node, pods: tuple[Pod, Pod]) -> None:
    """One bad object among good ones costs only itself."""
    server, client = pods
    before = node.policy_revision()
    node.apply(
        "mixed",
        cilium_policy("broken", {"endpointSelector": {}, "ingress": [{"fromCIDR": ["nowhere"]}]}),
        cilium_policy("guard", {"endpointSelector": {"matchLabels": {"app": "server"}}, "ingress": [{}]}),
    )
    node.wait_policy_after(before)
    closed = not client.reaches(server.address, 80)
    listed = [one["name"] for one in node.problems()]
    node.delete_policy("mixed")

    assert closed
    assert listed == ["broken"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"netns": "/run/netns/ct-none", "pod": "default/ghost"}, "422", ["/run/netns/ct-none"]),
        ({"netns": "/etc/hostname", "pod": "default/ghost"}, "422", ["/etc/hostname"]),
        ({"netns": "/run/netns/x", "pod": "no-namespace"}, "400", ["pod"]),
        ({"pod": "default/ghost"}, "400", ["netns"]),
    ],
    ids=["dead-namespace", "no-namespace-file", "bad-pod", "no-netns"],
)
def test_impossible_endpoint_is_refused(
    node: Node, body: dict[str, Any], status: str, words: list[str]
) -> None:
    """The answer names what is wrong; no device, address or row stays behind."""
    del status
    before = (node.netns.links().keys(), node.agent.get("endpoint"), node.agent.get("healthz")["ipam"])
    with pytest.raises(CommandError) as refused:
        node.agent.client.put("endpoint", body)

    for word in words:
        assert word in str(refused.value)
    assert (
        node.netns.links().keys(),
        node.agent.get("endpoint"),
        node.agent.get("healthz")["ipam"],
    ) == before


def test_address_of_another_node_is_refused(node: Node) -> None:
    """Nothing of the pod is made, and the answer names the address."""
    before = (node.netns.links().keys(), node.agent.get("endpoint"), node.agent.get("healthz")["ipam"])
    with Namespace("ghost") as netns, pytest.raises(CommandError, match=r"10\.99\.0\.1") as refused:
        node.agent.client.put(
            "endpoint", {"netns": str(netns.path), "pod": "default/ghost", "ip": "10.99.0.1"}
        )

    assert "10.11.0.0/24" in str(refused.value)
    assert (
        node.netns.links().keys(),
        node.agent.get("endpoint"),
        node.agent.get("healthz")["ipam"],
    ) == before


def test_pod_that_is_asked_for_otherwise_is_refused(node: Node, pods: tuple[Pod, Pod]) -> None:
    """One pod has one namespace and one address; asking for others changes nothing and says what to do."""
    server, client = pods
    before = node.agent.get("endpoint")
    for body in (
        {"netns": str(client.netns.path), "pod": server.key},
        {"netns": str(server.netns.path), "pod": server.key, "ip": "10.11.0.200"},
    ):
        with pytest.raises(CommandError, match=f"endpoint del {server.id}"):
            node.agent.client.put("endpoint", body)

    assert node.agent.get("endpoint") == before
    assert client.reaches(server.address, 80)


def test_cli_says_why_an_endpoint_cannot_be(node: Node) -> None:
    """``ciliumd endpoint add`` of a namespace that is not there ends with 1 and a reason."""
    done = node.agent.cli(
        "endpoint", "add", "ct-none", "--pod", "default/ghost", check=False, program="ciliumd.cli.ciliumd"
    )

    assert done.returncode == 1
    assert "ct-none" in done.stderr
    assert "Traceback" not in done.stderr


def test_namespace_that_dies_takes_its_endpoint_along(node: Node, pods: tuple[Pod, Pod]) -> None:
    """A pod whose namespace vanishes leaves no endpoint; the others do not notice."""
    server, client = pods
    doomed = node.pod("doomed")
    address = doomed.address
    doomed.remove()
    eventually(
        lambda: "default/doomed" not in str(node.agent.get("endpoint")), "its endpoint is gone", seconds=15.0
    )
    eventually(lambda: address not in str(node.agent.get("map/cilium_lxc_v1")), "its row is gone")
    del node.pods[doomed.key]
    node.delete("pod-default-doomed")

    assert client.reaches(server.address, 80)


# ---- agents that cannot start ----------------------------------------------------------------


@pytest.fixture
def unborn(world: World) -> Iterator[Node]:
    """A node whose agent was not started."""
    with Node(world, name="unborn", pod_cidr="10.14.0.0/24") as node:
        yield node


def ending(node: Node) -> tuple[int, str]:
    """Exit code and log of an agent that must end by itself."""
    node.agent.launch()
    assert node.agent.process is not None
    code = node.agent.process.wait(30)
    log = node.agent.log_text()
    assert "Traceback" not in log, log
    return code, log


def test_pinned_map_of_another_size_is_refused(unborn: Node) -> None:
    """The map, the field and what to do are named; the foreign map stays as it is."""
    foreign = unborn.bpf_root / "maps" / "cilium_ct_v1"
    foreign.parent.mkdir(parents=True)
    run(
        [
            BPFTOOL,
            "map",
            "create",
            str(foreign),
            "type",
            "hash",
            "key",
            "4",
            "value",
            "8",
            "entries",
            "16",
            "name",
            "ct",
        ]
    )
    code, log = ending(unborn)

    assert code == 1
    assert "cilium_ct_v1" in log
    assert re.search(r"cleanup|remove|--bpf-root", log), log
    assert foreign.exists()
    assert not list((unborn.bpf_root / "links").glob("*"))


def test_pinned_map_of_another_layout_is_refused(unborn: Node) -> None:
    """Equal sizes, moved fields: refused by name of map and field, and served again once it is right."""
    from ciliumd import abi
    from ciliumd.bpf.map import Map

    unborn.start()
    unborn.agent.stop()
    key = abi.LayoutKey("cilium_ct_v1").pack()
    with Map.from_pin(unborn.bpf_root / "maps" / "cilium_layout_v1") as layouts:
        good = layouts.lookup(key)
        assert good is not None
        text = abi.LayoutValue.unpack(good).text
        layouts.update(key, abi.LayoutValue(text.replace("peer_identity", "peer_something")).pack())
        code, log = ending(unborn)
        layouts.update(key, good)

    assert code == 1
    assert "cilium_ct_v1" in log
    assert "peer_" in log
    unborn.agent.start()


@pytest.mark.parametrize("capability", ["bpf", "net_admin"])
def test_missing_capability_is_named(unborn: Node, capability: str) -> None:
    """Without CAP_BPF or CAP_NET_ADMIN the agent ends and says which it needs."""
    dropped = f"-{capability},-sys_admin"
    unborn.agent.wrapper = ["/usr/bin/setpriv", "--bounding-set", dropped, "--inh-caps", dropped, "--"]
    code, log = ending(unborn)

    assert code == 1
    assert f"CAP_{capability.upper()}" in log, log


def test_missing_bpffs_is_named_when_it_cannot_be_mounted(unborn: Node) -> None:
    """Without bpffs and without the right to mount it, the agent says where and how."""
    root = unborn.directory / "bpf" / "ciliumd"
    unborn.agent.options["bpf-root"] = str(root)
    unborn.agent.wrapper = [
        "/usr/bin/setpriv",
        "--bounding-set",
        "-sys_admin",
        "--inh-caps",
        "-sys_admin",
        "--",
    ]
    code, log = ending(unborn)

    assert code == 1
    assert "mount" in log, log
    assert str(root.parent) in log


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("pod-cidr", "10.0.0.0/31"),
        ("pod-cidr", "everywhere"),
        ("attach-mode", "magic"),
        ("no-such-option", "1"),
    ],
)
def test_bad_option_is_named(unborn: Node, option: str, value: str) -> None:
    """Exit code 2 and the option's name, before anything is touched."""
    unborn.agent.options[option] = value
    code, log = ending(unborn)

    assert code == 2
    assert option in log
    assert not unborn.bpf_root.exists()


@pytest.mark.parametrize("option", ["manifests", "cgroup-root"])
def test_missing_directory_is_named(unborn: Node, option: str) -> None:
    """Exit code 1, the option and the path."""
    unborn.agent.options[option] = "/nowhere/at/all"
    code, log = ending(unborn)

    assert code == 1
    assert "/nowhere/at/all" in log
    assert option in log


def test_second_agent_on_the_same_pins_is_refused(node: Node, pods: tuple[Pod, Pod]) -> None:
    """Two agents never write to the same maps; the first does not notice."""
    server, client = pods
    first, node.agent.process = node.agent.process, None
    try:
        node.agent.launch()
        second = node.agent.process
        assert second is not None
        code = second.wait(30)
    finally:
        node.agent.process = first

    assert code == 1
    assert "another agent" in node.agent.log_text()
    assert node.agent.healthy()
    assert client.reaches(server.address, 80)
