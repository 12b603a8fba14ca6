# SPDX-License-Identifier: Apache-2.0
"""The status answers whatever hangs, says what is wrong, and reads identities as the datapath does."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import SimpleNamespace

import pytest

from ciliumd import abi
from ciliumd.bpf.carry import Carried
from ciliumd.bpf.errors import BpfError
from ciliumd.daemon import stages, status
from ciliumd.daemon.attachments import Missing
from ciliumd.daemon.limits import Limits
from ciliumd.daemon.settings import Settings
from ciliumd.health.model import Summary
from ciliumd.ipam.hostscope import HostScope
from ciliumd.kubernetes.source import KubernetesStatus
from ciliumd.model.identity import Reserved
from ciliumd.net.devices import NativeDevice
from ciliumd.net.errors import NetError
from ciliumd.net.thread import NetlinkStatus
from ciliumd.reconcile import nat_ports
from ciliumd.reconcile.loop import ReconcilerStatus, Running
from ciliumd.reconcile.progress import StageStatus
from ciliumd.tables import Problem
from unit.daemon import nodes
from unit.daemon.kernel import Kernel

SECONDS = 5.0
ETH0 = NativeDevice(3, "eth0", "02:00:00:00:00:01", 1500, (ip_address("192.0.2.1"),), ())
GENERATION = 7


def stage(name="cilium_lxc_v1", **changes):
    """The status of a stage that is well."""
    well = {
        "name": name,
        "rows": 1,
        "pending_updates": 0,
        "pending_deletions": 0,
        "failing": 0,
        "held": None,
        "last_error": None,
        "last_error_at": None,
        "last_success": 100.0,
    }
    return StageStatus(**{**well, **changes})


def reconciler(*stages, running=None):
    """The status of a reconciler."""
    return ReconcilerStatus(rounds=1, may_delete=True, running=running, last_round=1.0, stages=stages)


class Host:
    """An agent that is well; tests break one thing each."""

    def __init__(self):
        self.state = reconciler(stage())
        self.reconciler = SimpleNamespace(status=lambda: self.state)
        self.writer = ThreadPoolExecutor(1)
        self.blocked = None
        self.missing = []
        self.sockets = True
        self.native = (ETH0,)
        self.native_error = None
        self.kernel_error = None
        self.link_error = None
        self.links = {1: SimpleNamespace(up=True), 2: SimpleNamespace(up=True)}
        self.thread = NetlinkStatus(True, 0, None, 0.0, 5, 1)
        self.netlink = SimpleNamespace(status=lambda: self.thread, call=self.call)
        self.netlink_hangs = False
        self.attachments = SimpleNamespace(
            missing=self._missing, socket_lb=self._sockets, mode="TCX", cgroup=Path("/cg"), devices={1: 1}
        )
        self.settings = Settings(manifests=Path("/m"))
        self.audited = frozenset()
        self.plan = SimpleNamespace(
            node=SimpleNamespace(name="a", cluster="default", audit=False), audited=lambda: self.audited
        )
        self.counted = Summary(2, (), 0, 0, 1628674411.0)
        self.health = SimpleNamespace(problem="", unready="", summary=lambda: self.counted)
        self.host = SimpleNamespace(host=SimpleNamespace(ifindex=1), net=SimpleNamespace(ifindex=2))
        self.watch = SimpleNamespace(alive=True)
        self.hooks = {int(hook): b"1" for hook in abi.Hook}
        names = {f"hook_{one}" for one in ("from_container", "from_host")}
        self.active = GENERATION
        self.carried = []
        self.datapath = SimpleNamespace(
            word=lambda _: self.active,
            generation=SimpleNamespace(
                number=GENERATION, programs=dict.fromkeys(names), maps={}, carried=self.carried
            ),
        )
        self.ring = SimpleNamespace(stats=lambda: SimpleNamespace(lost=0, unknown=0))
        self.pools = (HostScope(ip_network("10.0.0.0/24")),)
        self.controllers = SimpleNamespace(all=list)
        self.tables = nodes.filled()
        self.synced = True
        self.scanned = SimpleNamespace(error=None, files=1, objects=2, problems=0)
        self.source = SimpleNamespace(status=lambda: self.scanned)
        self.observer = SimpleNamespace(drifted_rows=0)
        self.gc = SimpleNamespace(totals=SimpleNamespace(conntrack=0, nat=0), ports=nat_ports.NOTHING)
        self.limits = Limits(self.tables, list)
        self.terminator = SimpleNamespace(totals=SimpleNamespace(sockets=0, flows=0, how="sock_diag"))
        self.kernel = SimpleNamespace(kernel="6.1")

    def map(self, name):
        """A map."""
        if name == "cilium_hooks_v1":
            return SimpleNamespace(
                lookup=lambda key: self.hooks.get(int.from_bytes(key, "little") % abi.Hook.HOOK_MAX)
            )
        return SimpleNamespace(info=SimpleNamespace(max_entries=1 << 20))

    async def in_writer(self, call):
        """In its thread, which may hang."""
        return await asyncio.get_running_loop().run_in_executor(self.writer, call)

    async def _missing(self):
        if self.kernel_error:
            raise self.kernel_error
        return await self.in_writer(lambda: self.missing)

    async def _sockets(self):
        return self.sockets

    async def call(self, function, *args):
        """As ``NetlinkThread.call``."""
        if self.netlink_hangs:
            await asyncio.sleep(60)
        if function.__name__ == "native_devices":
            if self.native_error:
                raise self.native_error
            return self.native
        if self.link_error:
            raise self.link_error
        return self.links.get(args[0])


@pytest.fixture
def host():
    """An agent that is well."""
    made = Host()
    yield made
    made.writer.shutdown(wait=False)


def ask(host):
    """Its status."""

    async def body():
        async with asyncio.timeout(SECONDS):
            return await status.status(host)

    return asyncio.run(body())


def broken(**changes):
    """Sets attributes of the host."""

    def apply(host):
        for name, value in changes.items():
            setattr(host, name, value)

    return apply


def test_all_is_well(host):
    """Nothing to complain of."""
    answer = ask(host)
    assert answer["cilium"]["state"] == "Ok"
    assert answer["kube-proxy-replacement"]["mode"] == "True"
    assert answer["kube-proxy-replacement"]["features"]["socketLB"]["enabled"] is True
    assert answer["host-routing"] == {"mode": "BPF"}
    assert answer["masquerading"]["enabled"] is True
    assert answer["ipam"]["status"].startswith("IPv4: 1/254 allocated from 10.0.0.0/24")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            broken(missing=[Missing(7, "entry_to_container on shop/web (egress)")]),
            "detached: entry_to_container",
        ),
        (broken(active=8), "generation 8 is active, this agent loaded 7"),
        (broken(hooks={}), "no program in HOOK_FROM_CONTAINER, HOOK_FROM_HOST"),
        (broken(links={2: SimpleNamespace(up=True)}), "cilium_host is gone"),
        (broken(links={1: SimpleNamespace(up=True), 2: SimpleNamespace(up=False)}), "cilium_net is down"),
        (broken(watch=SimpleNamespace(alive=False)), "link watch has ended"),
        (broken(thread=NetlinkStatus(False, 0, None, 0.0, 0, 0)), "netlink thread has ended"),
        (broken(native_error=NetError("find native devices", "no device eth9")), "no device eth9"),
        (broken(kernel_error=BpfError("open pin", "x", 12)), "programs cannot be looked at: open pin x"),
        (broken(link_error=NetError("look up link 1", "No buffer space")), "look up link 1: No buffer space"),
        (broken(tables=nodes.filled(in_sync=False)), "waiting for manifests"),
        (broken(synced=False), "writing what the manifests say"),
        (broken(state=reconciler(stage(failing=1, last_error="E2BIG"))), "cilium_lxc_v1: E2BIG"),
        (
            broken(scanned=SimpleNamespace(error="Permission denied", files=0, objects=0, problems=0)),
            "manifests directory /m: Permission denied",
        ),
    ],
)
def test_what_is_wrong_is_said(host, spoil, said):
    """One thing broken, one line about it."""
    spoil(host)
    answer = ask(host)["cilium"]
    assert answer["state"] == "Failure"
    assert said in answer["msg"]


def test_who_has_to_do_without_is_told_and_keeps_no_pod_from_the_node(host):
    """The agent is as ready as before: others' pods would suffer for one that is shut."""
    assert ask(host)["limits"] == {"state": "Ok", "msg": ""}
    for number in range(5):
        host.tables.problems.set(("Endpoint", "shop", f"web-{number}"), Problem("policy", "nothing passes"))
    answer = ask(host)
    assert answer["limits"]["state"] == "Warning"
    assert answer["limits"]["msg"].startswith("Endpoint shop/web-0: nothing passes; ")
    assert answer["limits"]["msg"].endswith("; 2 more")
    assert answer["cilium"]["state"] == "Ok"
    assert asyncio.run(status.unready(host)) == ""


def test_a_stage_that_failed_and_recovered_is_no_problem(host):
    """Its last error is history."""
    host.state = reconciler(stage(last_error="E2BIG", last_error_at=50.0))
    answer = ask(host)
    assert answer["cilium"]["state"] == "Ok"
    (one,) = answer["controllers"]
    assert one["status"]["consecutive-failure-count"] == 0
    assert one["status"]["last-failure-msg"] == ""


def test_rows_that_were_carried_are_told(host):
    """After an upgrade; any other start says nothing of it."""
    assert "rows carried" not in ask(host)["datapath"]
    host.carried += [Carried("cilium_ct_v1", "cilium_ct_v2", 7, 1, 0), Carried("a", "b", 0, 3, 0)]
    assert ask(host)["datapath"]["rows carried"] == "cilium_ct_v2 7"


def test_what_a_directory_has_no_api_server_for_is_disabled(host):
    """No Kubernetes, no key-value store; health and nodes as everywhere."""
    answer = ask(host)
    assert answer["kubernetes"] == {"state": "Disabled", "msg": ""}
    assert answer["kvstore"]["state"] == "Disabled"
    assert answer["cluster"]["self"] == "a"
    assert answer["cluster"]["ciliumHealth"] == {"state": "Ok", "msg": ""}
    (own,) = answer["cluster"]["nodes"]
    assert own["primary-address"]["ipv4"]["ip"] == "192.0.2.1"
    assert own["primary-address"]["ipv4"]["alloc-range"] == "10.0.0.0/24"
    assert answer["cluster-health"] == {
        "reachable": 2,
        "total": 2,
        "time": "2021-08-11T09:33:31Z",
        "unreachable": [],
    }


def cluster(host, **changes):
    """Make *host* a node of a cluster whose API server answers unless *changes* say otherwise."""
    host.settings = Settings(routing_mode="tunnel")
    well = {
        "server": "https://192.0.2.9:6443",
        "server_version": "v1.34.4",
        "apis": ("core/v1::Node",),
        "connected": True,
        "initialized": True,
        "error": None,
        "kinds": {},
        "restarts": 0,
    }
    host.scanned = KubernetesStatus(**{**well, **changes})


def test_a_node_of_a_cluster_shows_it(host):
    """Version and kinds of the API server, and the tunnel."""
    cluster(host)
    answer = ask(host)
    assert answer["kubernetes"] == {
        "state": "Ok",
        "msg": "1.34 (v1.34.4)",
        "k8s-api-versions": ["core/v1::Node"],
    }
    assert answer["routing"] == {
        "inter-host-routing-mode": "Tunnel",
        "tunnel-protocol": "vxlan",
        "intra-host-routing-mode": "BPF",
    }
    assert answer["cilium"]["state"] == "Ok"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"error": "list pods: 401 Unauthorized"}, "list pods: 401 Unauthorized"),
        ({"connected": False}, "no connection to https://192.0.2.9:6443"),
    ],
)
def test_an_api_server_that_is_away_makes_unready_but_not_sick(host, changes, said):
    """What is in the maps goes on: no restart would help."""
    cluster(host, **changes)
    answer = ask(host)
    assert answer["kubernetes"]["state"] == "Failure"
    assert answer["kubernetes"]["msg"] == said
    assert answer["cilium"]["state"] == "Ok"
    assert asyncio.run(status.unready(host)) == said
    assert status.lifeless(host) == ""


def test_readiness_waits_for_the_self_test(host):
    """An agent whose own endpoint cannot be reached is given no pods."""
    host.health.unready = "self test: ICMP to the health endpoint 10.0.0.7: Connection timed out"
    assert "self test: ICMP" in asyncio.run(status.unready(host))
    host.health.unready = ""
    assert asyncio.run(status.unready(host)) == ""


def test_nodes_that_do_not_answer_are_counted_and_a_broken_responder_is_told(host):
    """The cluster's trouble is not the node's; its own is a warning."""
    host.counted = Summary(5, ("b", "c", "d", "e"), 4, 0, 1628674411.0)
    host.health.problem = "cannot listen at 192.0.2.1:4240: Address already in use"
    answer = ask(host)
    assert answer["cluster-health"]["reachable"] == 1
    assert answer["cluster-health"]["unreachable"] == ["b", "c", "d"]
    assert answer["cluster"]["ciliumHealth"]["state"] == "Warning"
    assert answer["cilium"]["state"] == "Ok"


def test_health_that_is_switched_off_is_disabled(host):
    """No line about a cluster nobody looks at."""
    host.counted = None
    host.settings = Settings(manifests=Path("/m"), enable_endpoint_health_checking=False)
    answer = ask(host)
    assert answer["cluster"]["ciliumHealth"]["state"] == "Disabled"
    assert "cluster-health" not in answer


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (broken(), ""),
        (broken(synced=False), ""),
        (broken(thread=NetlinkStatus(False, 0, None, 0.0, 0, 0)), "netlink thread has ended"),
        (
            broken(thread=NetlinkStatus(True, 3, "all_links", 61.0, 5, 1)),
            "netlink thread hangs in all_links",
        ),
        (broken(thread=NetlinkStatus(True, 3, "all_links", 6.0, 5, 1)), ""),
        (
            broken(state=reconciler(stage(), running=Running("cilium_lxc_v1", "update", 61.0))),
            "writer thread hangs in cilium_lxc_v1 update",
        ),
    ],
)
def test_only_threads_that_will_not_come_back_call_for_a_restart(host, spoil, said):
    """Slow is not dead."""
    spoil(host)
    assert status.lifeless(host) == said


@pytest.mark.parametrize(
    ("changes", "attribute", "value"),
    [
        ({}, "mode", "True"),
        ({"kube_proxy_replacement": "strict"}, "mode", "Strict"),
        ({"kube_proxy_replacement": False}, "mode", "False"),
    ],
)
def test_kube_proxy_is_replaced_where_it_is_wanted(host, changes, attribute, value):
    """NodePorts with their range, or none."""
    host.settings = Settings(manifests=Path("/m"), node_port_range=(31000, 31999), **changes)
    found = ask(host)["kube-proxy-replacement"]
    assert found[attribute] == value
    wanted = {"enabled": True, "portMin": 31000, "portMax": 31999}
    node_port = found["features"]["nodePort"]
    assert {name: node_port.get(name) for name in wanted} == (
        wanted if value in {"True", "Strict"} else {"enabled": False, "portMin": None, "portMax": None}
    )


def test_a_cni_configuration_that_is_awaited_is_told(host, tmp_path):
    """Not written yet, then written."""
    path = tmp_path / "05-cilium.conflist"
    host.settings = Settings(manifests=Path("/m"), write_cni_conf_when_ready=path)
    assert ask(host)["cni-file"] == {"state": "Warning", "msg": f"{path} is not written yet"}
    path.write_text("{}")
    assert ask(host)["cni-file"]["msg"] == f"successfully wrote CNI configuration file to {path}"


@pytest.mark.parametrize("known", [True, False])
def test_a_writer_that_hangs_does_not_hang_the_status(host, monkeypatch, known):
    """What only it could tell is unknown; the rest is there."""
    monkeypatch.setattr(status, "HUNG_SECONDS", 5.0 if known else 0.05)

    async def scenario():
        gate = asyncio.Event()
        loop = asyncio.get_running_loop()
        host.writer.submit(lambda: asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(SECONDS))
        host.state = reconciler(stage(), running=Running("cilium_lxc_v1", "update", 60.0 if known else 0.0))
        try:
            async with asyncio.timeout(1.0):
                return await status.status(host)
        finally:
            gate.set()
            await asyncio.sleep(0.05)

    answer = asyncio.run(scenario())
    assert "writer thread hangs in cilium_lxc_v1 update" in answer["cilium"]["msg"]
    assert answer["kube-proxy-replacement"]["mode"] == "False"
    assert answer["masquerading"]["enabled"] is True


@pytest.mark.parametrize("age", [60.0, 0.0])
def test_a_netlink_thread_that_hangs_does_not_hang_the_status(host, monkeypatch, age):
    """Whether it is known already or found out now."""
    monkeypatch.setattr(status, "HUNG_SECONDS", 0.05)
    host.netlink_hangs = True
    host.thread = NetlinkStatus(True, 3, "all_links", age, 5, 1)
    answer = ask(host)
    assert "netlink thread hangs in all_links" in answer["cilium"]["msg"]
    assert answer["host-routing"] == {"mode": "Legacy"}


@pytest.mark.parametrize(
    ("spoil", "enabled"),
    [
        (broken(), True),
        (broken(native=()), False),
        (broken(native=(NativeDevice(3, "eth0", "", 1500, (), ()),)), False),
        (broken(missing=[Missing(3, "entry_to_netdev on eth0 (egress)")]), False),
        (broken(missing=[Missing(9, "entry_to_container on shop/web (egress)")]), True),
    ],
)
def test_masquerading_is_on_when_it_works(host, spoil, enabled):
    """Wanted, with an address and programs on every native device."""
    spoil(host)
    assert ask(host)["masquerading"]["enabledProtocols"] == {"ipv4": enabled, "ipv6": False}


def test_an_address_has_the_identity_the_datapath_finds():
    """The single address, else the longest prefix, else the world."""
    kernel = Kernel()
    made = nodes.add_pod(kernel.tables, 1, {"app": "web"})
    nodes.add_policy(
        kernel.tables,
        nodes.policy(
            "x", nodes.rule(nodes.cidr("198.51.0.0/16", "198.51.100.0/24"), nodes.cidr("203.0.113.7/32"))
        ),
    )
    empty = Kernel()
    for one in (kernel, empty):
        one.round()
    numbers = dict(kernel.tables.prefixes.items())
    cases = {
        str(made.ipv4): kernel.node.plan.identities[1],
        "198.51.1.1": numbers[ip_network("198.51.0.0/16")],
        "198.51.100.1": numbers[ip_network("198.51.100.0/24")],
        "203.0.113.7": numbers[ip_network("203.0.113.7/32")],
        "203.0.113.8": int(Reserved.WORLD),
        "2001:db8::1": int(Reserved.WORLD_IPV6),
    }
    for text, expected in cases.items():
        assert status.identity_of_address(kernel.reconciler, ip_address(text)) == expected
    assert status.identity_of_address(empty.reconciler, ip_address("10.0.0.3")) == Reserved.WORLD
    assert stages.IPCACHE in kernel.maps


def test_audit_is_told_and_only_where_there_is_some(host):
    """Of the node, and of endpoints that differ from it."""
    assert "policy-audit" not in ask(host)
    host.audited = frozenset({12, 7})
    assert ask(host)["policy-audit"] == {"node": False, "endpoints": [7, 12]}
    host.plan.node.audit, host.audited = True, frozenset()
    assert ask(host)["policy-audit"] == {"node": True, "endpoints": []}
