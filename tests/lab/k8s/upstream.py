# SPDX-License-Identifier: Apache-2.0
"""
Kubernetes' own end-to-end specs of sig-network, run against a cluster.

A spec is named as its program's JUnit report names it, without the kind of node before the name and the
labels after it.  Lists of them are files with a name in each line; ``#`` begins a comment.
"""

import json
import re
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lab.k8s.cluster import Cluster
from lab.process import REPOSITORY, Process, run

LISTS: Final = REPOSITORY / "tests" / "e2e"

# The policy specs take as long as a third of all others.
SHARDS: Final = 3
TAIL: Final = 60
# The groups about services, of one family and of both, as specs' names begin.
GROUPS: Final = r"\[sig-network\] (Services|HostPort|Conntrack|Networking Granular Checks)"
# Those about NetworkPolicy.
POLICIES: Final = r"\[sig-network\] Netpol"
DUAL: Final = r"\[sig-network\].*\[Feature:IPv6DualStack\]"
# Specs that want the cluster for themselves.
ALONE: Final = ("[Serial]", "[Disruptive]")


def listed(path: Path) -> list[str]:
    """The names in a list."""
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


def runnable(cluster: str, *names: str) -> list[str]:
    """The specs of lists beside specs_excluded.toml, but for those that it excludes for a kind of cluster."""
    excluded = tomllib.loads((LISTS / "specs_excluded.toml").read_text())[cluster]
    return [spec for name in names for spec in listed(LISTS / name) if spec not in excluded]


def title(case: ET.Element) -> str:
    """A spec's name as lists have it."""
    return re.sub(r" \[sig-network(, [^\]]*)?\]$", "", (case.get("name") or "").removeprefix("[It] "))


def cases(report: Path) -> dict[str, ET.Element]:
    """The specs that a report says were run."""
    found = ET.parse(report).getroot().iter("testcase")  # noqa: S314  # written by the specs a moment ago
    # What is not named so is what surrounds the specs.
    named = {title(case): case for case in found if case.get("status") != "skipped"}
    return {name: case for name, case in named.items() if name.startswith("[sig-network]")}


def focus(specs: list[str]) -> str:
    """A regular expression (Go's) for these names."""
    return "|".join(re.sub(r"([.\\+*?()\[\]{}^$|])", r"\\\1", spec) for spec in specs)


def command(cluster: Cluster, report: Path, seconds: int, *words: str) -> list[str | Path]:
    """The specs' program."""
    return [
        cluster.programs / "e2e.test",
        "--provider=skeleton",
        f"--kubeconfig={cluster.kubectl.kubeconfig}",
        f"--kubectl-path={cluster.kubectl.program}",
        f"--num-nodes={len(cluster.nodes)}",
        "--disable-log-dump",
        "--ginkgo.no-color",
        f"--ginkgo.timeout={seconds}s",
        f"--ginkgo.junit-report={report}",
        *words,
    ]


def existing(cluster: Cluster, pattern: str, directory: Path) -> set[str]:
    """Every spec of this version of Kubernetes whose name the regular expression (Go's) matches."""
    report = directory / "existing.xml"
    run(command(cluster, report, 60, f"--ginkgo.focus={pattern}", "--ginkgo.dry-run"))
    return set(cases(report))


def run_specs(cluster: Cluster, specs: list[str], directory: Path, *, seconds: int) -> dict[str, ET.Element]:
    """
    Run specs; what the reports say of each.

    A few processes at a time, because most of their time is waiting; then those that want to be alone.
    Each process has *seconds*.
    """
    together = [spec for spec in specs if not any(word in spec for word in ALONE)]
    alone = [spec for spec in specs if spec not in together]
    found = _side_by_side(cluster, [together[number::SHARDS] for number in range(SHARDS)], directory, seconds)
    return found | _side_by_side(cluster, [alone], directory / "alone", seconds)


def _side_by_side(
    cluster: Cluster, shards: list[list[str]], directory: Path, seconds: int
) -> dict[str, ET.Element]:
    directory.mkdir(exist_ok=True)
    running = []
    for number, specs in enumerate(shards):
        if not specs:
            continue
        report, log = directory / f"{number}.xml", directory / f"{number}.log"
        words = command(cluster, report, seconds, f"--ginkgo.focus={focus(specs)}")
        with log.open("wb") as output:
            running.append((Process(words, env=cluster.kubectl.env, output=output), report, log))
    found: dict[str, ET.Element] = {}
    for process, report, log in running:
        with process:
            process.wait(seconds + 60)
        assert report.exists(), "\n".join(log.read_text(errors="replace").splitlines()[-TAIL:])
        found |= cases(report)
    return found


def judge(case: ET.Element, cluster: str, record_property: Callable[[str, object], None]) -> None:
    """Note how a spec ran on a *cluster*, single, dual or six; fail with its own story unless it passed."""
    story = "\n".join((case.findtext("system-err") or "").splitlines()[-TAIL:])
    passed = case.get("status") == "passed"
    record_property("seconds", case.get("time"))
    data = {"case": "U1", f"specs on a {cluster} cluster": 1, f"passed on a {cluster} cluster": int(passed)}
    record_property("data", json.dumps(data))

    assert passed, story
