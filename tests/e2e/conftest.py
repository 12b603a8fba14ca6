# SPDX-License-Identifier: Apache-2.0
"""
One cluster for all of the layer, with the image built from this checkout and the chart installed.

The files run in the order of a cluster's life, and stop at the first that leaves nothing to test.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.k8s import pages, plan
from lab.k8s.ciliumd import IMAGE, Ciliumd
from lab.k8s.cluster import PROGRAMS_VARIABLE, Cluster, programs_directory, sweep
from lab.k8s.fingerprint import Installed, fingerprint
from lab.k8s.kubectl import Kubectl
from lab.k8s.people import People
from lab.process import REPOSITORY

ORDER = [
    "test_image",
    "test_chart",
    "test_network",
    "test_pages",
    "test_posture",
    "test_cgroup",
    "test_restart",
    "test_upstream",
    "test_upstream_groups",
    "test_uninstall",
    "test_beside_kube_proxy",
    "test_dual_stack",
    "test_dual_services",
    "test_dual_upstream",
    "test_ipv6_only",
    "test_ipv6_upstream",
]
ONLY_LONG = ("test_upstream_groups", "test_dual_upstream", "test_ipv6_only", "test_ipv6_upstream")
BUILD_SECONDS = 2400


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--cluster``: one that is up, with or without ciliumd; ``--dual-cluster``: with both, and with it."""
    for option in ("--cluster", "--dual-cluster"):
        parser.addoption(option, type=int, metavar="N", help="test on cluster N and leave it: lab.k8s list")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What takes an hour is for ``--long``."""
    return (collection_path.stem in ONLY_LONG and not config.getoption("--long")) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order of a cluster's life."""
    items.sort(key=lambda item: ORDER.index(item.path.stem) if item.path.stem in ORDER else -1)


def built(script: str) -> None:
    """Run a build script of this checkout; it does nothing when all is up to date."""
    done = subprocess.run(
        [sys.executable, REPOSITORY / "build" / script],
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        env=os.environ | {PROGRAMS_VARIABLE: str(programs_directory())},
        check=False,
    )
    assert done.returncode == 0, f"build/{script} ended with {done.returncode}\n{done.stdout}{done.stderr}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failure shows the end of the agents' logs."""
    outcome: Any = yield
    report = outcome.get_result()
    ciliumd = getattr(item, "funcargs", {}).get("ciliumd")
    if report.failed and isinstance(ciliumd, Ciliumd):
        report.sections.append(("agents and operators", ciliumd.story()))


def _nodes(request: pytest.FixtureRequest) -> int:
    """As many as the specs need that are run: some for ``--long`` want three."""
    return 3 if request.config.getoption("--long") else 2


@pytest.fixture(scope="session")
def image() -> Path:
    """The archive of the image that this checkout makes."""
    built("image.py")
    return IMAGE


@pytest.fixture(scope="session")
def bare(image: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Nodes with the image on them, without CNI and kube-proxy."""
    number = request.config.getoption("--cluster")
    if number is not None:
        (existing,) = (one for one in plan.registered() if one.number == number)
        cluster = Cluster(existing=existing)
        yield cluster
        cluster.end_actors()
        return
    built("k8s_tools.py")
    sweep()
    with Cluster(nodes=_nodes(request)) as cluster:
        cluster.load(image)
        yield cluster


@pytest.fixture(scope="session")
def installed(bare: Cluster) -> Installed:
    """The chart installed by the commands of README, agents and nodes ready."""
    ciliumd = Ciliumd(bare)
    before = fingerprint(bare)
    started = time.monotonic()
    if not ciliumd.installed():
        pages.follow(ciliumd, pages.the("README.md", "helm install"))
    ciliumd.wait()
    return Installed(ciliumd, before, time.monotonic() - started)


@pytest.fixture(scope="session")
def dual(request: pytest.FixtureRequest) -> Iterator[Ciliumd]:
    """ciliumd on a cluster of both address families, IPv4 first; ``--dual-cluster`` has one that is up."""
    number = request.config.getoption("--dual-cluster")
    if number is not None:
        (existing,) = (one for one in plan.registered() if one.number == number)
        cluster = Cluster(existing=existing)
        yield Ciliumd(cluster)
        cluster.end_actors()
        return
    image: Path = request.getfixturevalue("image")
    built("k8s_tools.py")
    with Cluster(nodes=_nodes(request), dual=True) as cluster:
        cluster.load(image)
        ciliumd = Ciliumd(cluster)
        ciliumd.install(**{"ipv6.enabled": "true"})
        ciliumd.wait()
        yield ciliumd


@pytest.fixture(scope="session")
def six(image: Path) -> Iterator[Ciliumd]:
    """ciliumd on a cluster of IPv6 alone."""
    built("k8s_tools.py")
    with Cluster(nodes=2, six=True) as cluster:
        cluster.load(image)
        ciliumd = Ciliumd(cluster)
        ciliumd.install(**{"ipv4.enabled": "false", "ipv6.enabled": "true"})
        ciliumd.wait()
        yield ciliumd


@pytest.fixture(scope="session")
def ciliumd(installed: Installed) -> Ciliumd:
    """ciliumd on the cluster."""
    return installed.ciliumd


@pytest.fixture(scope="session")
def cluster(ciliumd: Ciliumd) -> Cluster:
    """The cluster, with ciliumd."""
    return ciliumd.cluster


@pytest.fixture(scope="session")
def kubectl(cluster: Cluster) -> Kubectl:
    """Its kubectl."""
    return cluster.kubectl


@pytest.fixture(scope="session")
def people(cluster: Cluster) -> People:
    """client1, server1 on node1; client2, server2 on node2."""
    return People.settle(cluster)
