# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a node of one's own, the programs loaded once, maps empty at the start of every test."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

import pytest

from ciliumd.bpf.features import tcx_supported
from ciliumd.daemon.datapath import network6
from datapath.contest import Contest, all_contests
from datapath.harness import Datapath
from datapath.node import MASQUERADE6, POD_CIDR6, private_node
from datapath.openworld6 import SIX_ONE, SIX_TWO, all_contests6
from datapath.rows import ALLOW_ALL, POD_ONE, POD_TWO
from datapath.tally import Tally
from datapath.tunnel import Tunnel, node_two, tunnel_node
from datapath.tunnel6 import fill_away
from datapath.wire import expose
from datapath.wire6 import expose6
from fixtures.packets import node_one, pod_two, svc_one
from lab.cgroup import Cgroup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Load(Protocol):
    """Loads the programs once more, with other options."""

    def __call__(self, **config: bool | int) -> Datapath:
        """The datapath, taken down at the end of the test."""


@pytest.fixture(scope="session")
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether as many packets are asked for as a release is, and not a sample."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Iterator[Tally]:
    """Where a test of the packet suite leaves its figures."""
    tally = Tally(record_property)
    yield tally
    tally.close()


@pytest.fixture(scope="session")
def node() -> Iterator[None]:
    """A private network namespace with the devices of a node."""
    with private_node():
        yield


@pytest.fixture(scope="session")
def loaded_datapath(node: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Datapath]:
    """The programs with the usual options, loaded once."""
    with Datapath.loaded(tmp_path_factory.mktemp("state")) as datapath:
        yield datapath


@pytest.fixture
def datapath(loaded_datapath: Datapath) -> Datapath:
    """The programs over empty maps."""
    loaded_datapath.reset()
    return loaded_datapath


@pytest.fixture(scope="session")
def loaded_node_port(node: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Datapath]:
    """The programs of a node that takes in what comes from outside, loaded once."""
    with Datapath.loaded(tmp_path_factory.mktemp("node-port"), node_port=1) as datapath:
        yield datapath


@pytest.fixture
def outside(loaded_node_port: Datapath) -> Datapath:
    """Such a node with pod one and a pod of another node as backends of its node ports (wire.py)."""
    loaded_node_port.reset()
    expose(loaded_node_port)
    return loaded_node_port


@pytest.fixture(scope="session")
def loaded_exposed6(node: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Datapath]:
    """The same of a node that has both families; pods are not masqueraded."""
    options = {"node_port": 1, "ipv6": 1, **network6("pod_cidr", POD_CIDR6)}
    with Datapath.loaded(tmp_path_factory.mktemp("node-port-6"), **options) as datapath:
        yield datapath


@pytest.fixture
def exposed6(loaded_exposed6: Datapath) -> Datapath:
    """Such a node with pod one and a pod of another node as backends of its node ports (wire6.py)."""
    loaded_exposed6.reset()
    expose6(loaded_exposed6)
    return loaded_exposed6


@pytest.fixture(scope="session")
def both_families(node: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Datapath]:
    """The programs, masquerading both families; loaded once."""
    with Datapath.loaded(tmp_path_factory.mktemp("masquerade-6"), **MASQUERADE6) as datapath:
        yield datapath


@pytest.fixture(scope="session")
def contests(node: None) -> Iterator[dict[str, Contest]]:
    """Every hook of a node that allows everything, against its reference."""
    with all_contests() as made:
        yield made


@pytest.fixture
def contest(contests: dict[str, Contest], hook: str) -> Contest:
    """The hook of this test, with nothing counted yet."""
    contest = contests[hook]
    contest.outcomes.clear()
    contest.wrong.clear()
    return contest


@pytest.fixture
def tcx() -> None:
    """For tests of tcx links: skipped where the kernel has none (expected_skips.toml)."""
    if not tcx_supported():
        pytest.skip("this kernel has no tcx")


@pytest.fixture
def two_pods(datapath: Datapath) -> Datapath:
    """The programs, and two pods on this node whose policies allow everything."""
    datapath.policies({POD_ONE.version: ALLOW_ALL, POD_TWO.version: ALLOW_ALL})
    datapath.add_endpoint(POD_ONE)
    datapath.add_endpoint(POD_TWO)
    return datapath


@pytest.fixture(scope="session")
def loaded_six(node: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Datapath]:
    """The programs of a node whose pods speak both families, loaded once."""
    with Datapath.loaded(tmp_path_factory.mktemp("six"), ipv6=1) as datapath:
        yield datapath


@pytest.fixture
def six(loaded_six: Datapath) -> Datapath:
    """Those over empty maps."""
    loaded_six.reset()
    return loaded_six


@pytest.fixture
def two_sixes(six: Datapath) -> Datapath:
    """Two pods with both families, whose policies allow everything."""
    six.policies({SIX_ONE.version: ALLOW_ALL, SIX_TWO.version: ALLOW_ALL})
    six.add_endpoint(SIX_ONE)
    six.add_endpoint(SIX_TWO)
    return six


@pytest.fixture(scope="session")
def contests6(node: None) -> Iterator[dict[str, Contest]]:
    """Every hook of a node that allows everything and speaks both families, against its reference."""
    with all_contests6() as made:
        yield made


@pytest.fixture
def contest6(contests6: dict[str, Contest], hook: str) -> Contest:
    """The hook of this test, with nothing counted yet."""
    contest = contests6[hook]
    contest.outcomes.clear()
    contest.wrong.clear()
    return contest


@pytest.fixture
def load(node: None, tmp_path: Path) -> Iterator[Load]:
    """Loads the programs with options of the test's own."""
    with contextlib.ExitStack() as stack:
        yield lambda **config: stack.enter_context(Datapath.loaded(tmp_path, **config))


@pytest.fixture
def service(two_pods: Datapath) -> Datapath:
    """svc_one, port 80/TCP and 53/UDP: both on pod two, with other ports there."""
    two_pods.add_service(1, svc_one.ip, 80, 6, {101: (pod_two.ip, 8080)})
    two_pods.add_service(2, svc_one.ip, 53, 17, {102: (pod_two.ip, 5353)})
    return two_pods


@pytest.fixture(scope="module")
def loaded_tunnel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    """A node with a tunnel on real devices; the module's tests are in it and in no other."""
    with tunnel_node(tmp_path_factory.mktemp("tunnel")) as made:
        yield made


@pytest.fixture
def tunnel(loaded_tunnel: Tunnel) -> Tunnel:
    """The node with a tunnel, knowing its cluster and pod one."""
    loaded_tunnel.reset()
    return loaded_tunnel


@pytest.fixture(scope="module")
def loaded_tunnel6(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    """The same whose pods have both families."""
    with tunnel_node(tmp_path_factory.mktemp("tunnel6"), ipv6=1) as made:
        yield made


@pytest.fixture
def tunnel6(loaded_tunnel6: Tunnel) -> Tunnel:
    """It knows node two's pods of IPv6, too."""
    loaded_tunnel6.reset()
    fill_away(loaded_tunnel6.datapath, node_two.ip)
    return loaded_tunnel6


@pytest.fixture
def world(two_pods: Datapath) -> Datapath:
    """A node with a way out, under its own address."""
    two_pods.native_device("net0", node_one.ip)
    two_pods.host_address(node_one.ip)
    return two_pods


@pytest.fixture
def group(outside: Datapath) -> Iterator[Cgroup]:
    """A control group whose sockets are translated."""
    with Cgroup("sock") as made:
        outside.generation.attach_cgroup(made.path)
        try:
            yield made
        finally:
            for pin in outside.generation.pins.links.glob("cgroup_*"):
                pin.unlink()
