# SPDX-License-Identifier: Apache-2.0
"""Status is true: each component is broken on purpose, and its line says so until it is whole."""

import contextlib
import signal
from collections.abc import Iterator

import pytest

from ciliumd import abi
from ciliumd.bpf.map import Map
from ciliumd.cli.status import brief
from lab import manifests, maps
from lab.node import Node
from lab.pod import Pod
from lab.waiting import eventually
from lab.world import World

pytestmark = pytest.mark.netns

VIP = "10.96.0.60"
REPAIRED_WITHIN = 20.0


@pytest.fixture(scope="module")
def node(world: World) -> Iterator[Node]:
    """A node whose agent compares maps every two seconds."""
    with Node(world, options={"drift-interval": "2"}) as node:
        yield node.start()


@pytest.fixture(scope="module")
def pods(node: Node) -> tuple[Pod, Pod]:
    """Two pods and a service."""
    server = node.pod("server", {"app": "server"}).serve(tcp=(80,))
    client = node.pod("client", {"app": "client"})
    node.apply("service", manifests.service("server", VIP, {"app": "server"}))
    node.wait_service(f"{VIP}:80", 1)
    return server, client


def line(node: Node, name: str, *options: str) -> str:
    """One line of ``cilium status``, without its name."""
    done = node.agent.cli("status", *options, check=False)
    for text in done.stdout.splitlines():
        head, colon, rest = text.strip().partition(":")
        if colon and head == name:
            return rest.strip()
    raise LookupError(f"status has no line {name}:\n{done.stdout}{done.stderr}")


def says(node: Node, name: str, expected: str, *options: str, seconds: float = 10.0) -> str:
    """Wait until a line contains a text."""
    return eventually(
        lambda: (text := line(node, name, *options)) and (text if expected in text else ""),
        f"status line {name} says {expected!r}",
        seconds=seconds,
        every=0.1,
    )


def whole(node: Node, *, seconds: float = REPAIRED_WITHIN) -> None:
    """Wait until all components are well again."""
    says(node, "Cilium", "Ok", seconds=seconds)


@pytest.fixture(autouse=True)
def _whole_before_and_after(node: Node, pods: tuple[Pod, Pod]) -> Iterator[None]:
    """Every test finds a node in order and leaves it so."""
    del pods
    whole(node)
    yield
    whole(node)


def test_detached_pod_is_named_and_attached_again(node: Node, pods: tuple[Pod, Pod]) -> None:
    """
    Programs somebody took off a pod's device: status names pod and program until they hang again.

    The repair shows as a failing controller until the next good round.
    """
    server, client = pods
    good, total = line(node, "Controller Status").split()[0].split("/")
    networking = client.endpoint["status"]["networking"]

    def broken(said: str) -> str:
        # It is repaired within two seconds, so it is broken again until somebody has looked in time.
        maps.detach(maps.link_pins(node.bpf_root, networking["interface-index"]))
        text = brief(node.agent.get("healthz"))
        return text if said in text else ""

    text = eventually(lambda: broken("entry_from_container"), "status names the program")

    assert "default/client" in text
    assert good == total
    eventually(
        lambda: "controller attachments" in brief(node.agent.get("healthz")),
        "the repair shows as a failing controller",
        seconds=REPAIRED_WITHIN,
    )
    whole(node)
    assert client.reaches(server.address, 80)
    assert client.reaches(VIP, 80)
    says(node, "Controller Status", f"{total}/{total}", seconds=2 * REPAIRED_WITHIN)
    assert node.agent.cilium("status", "--brief").strip() == "OK"


def test_detached_socket_programs_are_named_and_attached_again(node: Node, pods: tuple[Pod, Pod]) -> None:
    """Without its links on the control group, socket LB is Disabled; then it is repaired."""
    _, client = pods
    assert line(node, "Socket LB", "--verbose") == "Enabled"

    def broken() -> bool:
        maps.detach([pin for pin in maps.link_pins(node.bpf_root) if "connect4" in pin.name])
        answer = node.agent.get("healthz")
        return "connect4" in brief(answer) and answer["datapath"]["socket LB"] == "Disabled"

    eventually(broken, "status says that sockets are not served, and why")
    whole(node)
    assert line(node, "Socket LB", "--verbose") == "Enabled"
    assert client.inside.call("tcp_connect", address=VIP, port=80)["peer"] == [VIP, 80]


def test_device_that_is_down_is_named(node: Node, pods: tuple[Pod, Pod]) -> None:
    """cilium_net down: host routing is not BPF any more."""
    del pods
    assert line(node, "Host Routing") == "BPF"
    node.netns.ip("link", "set", "cilium_net", "down")
    assert "cilium_net is down" in says(node, "Cilium", "Failure")
    says(node, "Host Routing", "Legacy")
    node.netns.ip("link", "set", "cilium_net", "up")


def test_uplink_without_address_masquerades_nothing(node: Node, pods: tuple[Pod, Pod]) -> None:
    """Device list and masquerading follow the uplink's address, there and back."""
    del pods
    assert node.address in line(node, "KubeProxyReplacement")
    assert "[IPv4: Enabled" in line(node, "Masquerading")
    node.netns.ip("address", "del", f"{node.address}/24", "dev", "eth0")
    says(node, "Masquerading", "Disabled")
    assert node.address not in line(node, "KubeProxyReplacement")
    node.netns.ip("address", "add", f"{node.address}/24", "dev", "eth0")
    node.netns.ip("route", "replace", "default", "via", node.gateway, "src", node.address)
    says(node, "Masquerading", "[IPv4: Enabled")
    assert node.address in line(node, "KubeProxyReplacement")


def test_addresses_are_counted(node: Node, pods: tuple[Pod, Pod]) -> None:
    """IPAM shows one more with a pod more, and its owner."""
    del pods
    before = int(line(node, "IPAM").split()[1].split("/")[0])
    pod = node.pod("guest")
    text = node.agent.cilium("status", "--verbose")

    assert line(node, "IPAM").split()[1] == f"{before + 1}/254"
    assert f"{pod.address} (default/guest" in text
    node.remove_pod(pod)
    says(node, "IPAM", f"{before}/254")


def test_missing_hook_program_is_named(node: Node, pods: tuple[Pod, Pod]) -> None:
    """A row out of the table of programs: status names the hook; a start fills it again."""
    server, client = pods
    row = abi.NodeState.NODE_STATE_GENERATION.to_bytes(4, "little")
    with Map.from_pin(node.bpf_root / "maps" / "cilium_node_state_v1") as state:
        number = state.lookup(row)
    assert number is not None
    hook = (number[0] & 1) * abi.Hook.HOOK_MAX + abi.Hook.HOOK_FROM_CONTAINER
    with Map.from_pin(node.bpf_root / "maps" / "cilium_hooks_v1") as hooks:
        hooks.delete(hook.to_bytes(4, "little"))
    assert "HOOK_FROM_CONTAINER" in says(node, "Cilium", "Failure")
    says(node, "Host Routing", "Legacy")
    assert not client.reaches(server.address, 80)
    node.agent.restart(signal.SIGTERM)
    assert client.reaches(server.address, 80)


def test_foreign_generation_is_told(node: Node, pods: tuple[Pod, Pod]) -> None:
    """Somebody else's programs are active: status says which generation, and whose this agent's is."""
    del pods
    row = abi.NodeState.NODE_STATE_GENERATION.to_bytes(4, "little")
    with Map.from_pin(node.bpf_root / "maps" / "cilium_node_state_v1") as state:
        number = state.lookup(row)
        assert number is not None
        state.update(row, (int.from_bytes(number, "little") + 2).to_bytes(8, "little"))
        try:
            assert "generation" in says(node, "Cilium", "Failure")
        finally:
            state.update(row, number)


def test_manifests_out_of_reach_are_told(node: Node, pods: tuple[Pod, Pod]) -> None:
    """The directory is moved away: status says so, nothing is taken away, and it recovers."""
    server, client = pods
    aside = node.manifests.with_name("aside")
    services = node.agent.get("service")
    node.manifests.rename(aside)
    try:
        assert "manifests" in says(node, "Cilium", "Failure")
        assert node.agent.get("service") == services
        assert client.reaches(server.address, 80)
    finally:
        aside.rename(node.manifests)


@pytest.mark.parametrize("name", ["cilium_lxc_v1", "cilium_ipcache_v1", "cilium_lb_services_v1"])
def test_drifted_rows_are_written_again_and_counted(node: Node, pods: tuple[Pod, Pod], name: str) -> None:
    """Rows somebody deleted by hand are back after the next comparison."""
    server, client = pods

    def repaired() -> int:
        return int(line(node, "drift repaired", "--verbose").split()[0])

    before = repaired()
    with Map.from_pin(node.bpf_root / "maps" / name) as opened:
        rows = dict(opened.items())
        for key in rows:
            opened.delete(key)
        eventually(lambda: dict(opened.items()) == rows, f"rows of {name} are back", seconds=REPAIRED_WITHIN)
    eventually(lambda: repaired() >= before + len(rows), "drift is counted")

    assert client.reaches(server.address, 80)
    assert client.reaches(VIP, 80)


def test_silent_agent_is_told_from_a_sick_one(node: Node, pods: tuple[Pod, Pod]) -> None:
    """Without an agent the command says that nobody answers, and ends with a code of its own."""
    server, client = pods
    node.agent.stop(signal.SIGKILL)
    done = node.agent.cli("status", check=False)
    # With more time than a look has: a machine that is busy is not a path that is cut.
    still = client.tcp(server.address, 80)
    node.agent.start()

    assert done.returncode not in {0, 1}
    assert "cannot reach the agent" in done.stderr
    assert still["outcome"] == "answered", still


@contextlib.contextmanager
def restarted_with(node: Node, **options: str) -> Iterator[None]:
    """Other options within this block."""
    before = dict(node.agent.options)
    node.agent.stop()
    node.agent.options |= {name.replace("_", "-"): value for name, value in options.items()}
    node.agent.start()
    try:
        yield
    finally:
        node.agent.stop()
        node.agent.options = before
        node.agent.start()


def test_what_is_switched_off_is_disabled(node: Node, pods: tuple[Pod, Pod]) -> None:
    """Masquerading off by option reads Disabled; what is not built reads Disabled as well."""
    del pods
    with restarted_with(node, no_enable_ipv4_masquerade=""):
        assert line(node, "Masquerading") == "Disabled"
        assert line(node, "Cilium health daemon") == "Disabled"
        assert line(node, "Cluster health") == "Disabled"
        assert "lxc_health" not in node.netns.links()
    for name in ("Encryption", "Hubble", "BandwidthManager", "KVStore", "Proxy Status", "Kubernetes"):
        assert line(node, name) == "Disabled", name


def test_full_map_is_named_and_other_services_go_on(world: World) -> None:
    """More services than the map holds: status names the map; the rest is served; it heals."""
    with Node(world, name="narrow", pod_cidr="10.15.0.0/24", options={"bpf-lb-map-max": "256"}) as node:
        node.start()
        server = node.pod("server", {"app": "server"}).serve(tcp=(80,))
        client = node.pod("client")
        node.apply("service", manifests.service("server", VIP, {"app": "server"}))
        node.wait_service(f"{VIP}:80", 1)
        many = [("TCP", 1000 + number, 80) for number in range(200)]
        node.apply("many", manifests.service("many", "10.96.0.61", {"app": "server"}, ports=many))
        text = says(node, "Cilium", "Failure", seconds=REPAIRED_WITHIN)

        assert "cilium_lb_services_v1" in text
        assert client.reaches(VIP, 80)
        assert client.reaches(server.address, 80)
        node.delete("many")
        whole(node)
        assert client.reaches(VIP, 80)
