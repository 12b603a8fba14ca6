# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' own end-to-end specs of sig-network: specs.txt has those that must pass, one result each."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.k8s.cluster import Cluster
from lab.process import Process, run

LIST = Path(__file__).with_name("specs.txt")
SPECS = [line for line in LIST.read_text().splitlines() if not line.startswith("#")]
# The policy specs take as long as a third of all others.
SHARDS = 3
SECONDS = 1200
CONFORMANCE = r"\[sig-network\].*\[Conformance\]"
TAIL = 60


def title(case: ET.Element) -> str:
    """A spec's name as specs.txt has it: without the kind of node before it and the labels after it."""
    return re.sub(r" \[sig-network(, [^\]]*)?\]$", "", (case.get("name") or "").removeprefix("[It] "))


def cases(report: Path) -> dict[str, ET.Element]:
    """The specs that a report says were run."""
    found = ET.parse(report).getroot().iter("testcase")  # noqa: S314  # written by the specs a moment ago
    return {title(case): case for case in found if case.get("status") != "skipped"}


def focus(specs: list[str]) -> str:
    """A regular expression (Go's) for these names."""
    return "|".join(re.sub(r"([.\\+*?()\[\]{}^$|])", r"\\\1", spec) for spec in specs)


def command(cluster: Cluster, report: Path, *words: str) -> list[str | Path]:
    """The specs' program."""
    return [
        cluster.programs / "e2e.test",
        "--provider=skeleton",
        f"--kubeconfig={cluster.kubectl.kubeconfig}",
        f"--kubectl-path={cluster.kubectl.program}",
        f"--num-nodes={len(cluster.nodes)}",
        "--disable-log-dump",
        "--ginkgo.no-color",
        f"--ginkgo.timeout={SECONDS}s",
        f"--ginkgo.junit-report={report}",
        *words,
    ]


@pytest.fixture(scope="module")
def ran(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ET.Element]:
    """All specs, run in a few processes at a time: most of their time is waiting."""
    directory = tmp_path_factory.mktemp("specs")
    running = []
    for number in range(SHARDS):
        report, log = directory / f"{number}.xml", directory / f"{number}.log"
        words = command(cluster, report, f"--ginkgo.focus={focus(SPECS[number::SHARDS])}")
        with log.open("wb") as output:
            running.append((Process(words, env=cluster.kubectl.env, output=output), report, log))
    found: dict[str, ET.Element] = {}
    for process, report, log in running:
        with process:
            process.wait(SECONDS + 60)
        assert report.exists(), "\n".join(log.read_text(errors="replace").splitlines()[-TAIL:])
        found |= cases(report)
    return found


def test_the_list_is_complete(cluster: Cluster, tmp_path: Path) -> None:
    """specs.txt has every conformance spec of this version of Kubernetes."""
    report = tmp_path / "report.xml"
    words = [f"--ginkgo.focus={CONFORMANCE}", "--ginkgo.dry-run"]
    run(command(cluster, report, *words))
    listed = {name for name in cases(report) if "[Conformance]" in name}

    assert listed == {spec for spec in SPECS if "[Conformance]" in spec}


@pytest.mark.parametrize("spec", SPECS)
def test_spec(ran: dict[str, ET.Element], spec: str, record_property: Callable[[str, object], None]) -> None:
    """The spec passed."""
    case = ran[spec]
    record_property("seconds", case.get("time"))
    story = "\n".join((case.findtext("system-err") or "").splitlines()[-TAIL:])

    assert case.get("status") == "passed", story
