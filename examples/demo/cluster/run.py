# SPDX-License-Identifier: Apache-2.0
"""
The demo on a cluster: a real Kubernetes of two nodes, ciliumd by its chart, and the Star Wars.

    python examples/demo/cluster/run.py            show it and take it down
    python examples/demo/cluster/run.py --keep     leave it running
    python examples/demo/cluster/run.py --down     take a kept one down

Needs root; touches nothing of the machine but namespaces and control groups of its own.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
sys.path[:0] = [str(REPOSITORY / "src"), str(REPOSITORY / "tests")]

from lab.k8s import load, plan  # noqa: E402
from lab.k8s.ciliumd import AGENT, CHART, IMAGE, NAMESPACE, POD_DELETE, RELEASE, Ciliumd  # noqa: E402
from lab.k8s.cluster import Cluster, sweep  # noqa: E402
from lab.k8s.load import Load  # noqa: E402
from lab.k8s.node import ClusterNode  # noqa: E402
from lab.k8s.pod import ClusterPod  # noqa: E402
from lab.process import CommandFailed  # noqa: E402
from lab.waiting import NotInTime, eventually  # noqa: E402

KEPT = REPOSITORY / "build" / "out" / "demo" / "cluster.json"
LANDING = "deathstar.default.svc.cluster.local/v1/request-landing"
CURL_SECONDS = 3
PACKETS = 100_000
STARTED = time.monotonic()


class Refused(Exception):
    """The demo cannot be shown; the text says why and what to do."""


def say(text: str) -> None:
    """A line of progress."""
    print(f"\n[{time.monotonic() - STARTED:5.1f}s] {text}", flush=True)


def show(command: str, output: str) -> None:
    """A command and what it printed."""
    print("\n".join(filter(None, (f"$ {command}", output.rstrip()))), flush=True)


def kubectl(cluster: Cluster, *words: str) -> None:
    """Show a kubectl command."""
    show(f"kubectl {shlex.join(words)}", cluster.kubectl(*words))


def build() -> None:
    """Programs and image, unless they are up to date."""
    for script in ("k8s_tools.py", "image.py"):
        if subprocess.run([sys.executable, REPOSITORY / "build" / script], check=False).returncode:
            raise Refused(f"build/{script} failed: see above")


def install(cluster: Cluster) -> Ciliumd:
    """The chart, by helm; nodes are NotReady before and Ready after."""
    kubectl(cluster, "get", "nodes")
    ciliumd = Ciliumd(cluster)
    started = time.monotonic()
    ciliumd.install()
    chart = CHART.relative_to(REPOSITORY)
    show(f"helm install {RELEASE} {chart} -n {NAMESPACE} {' '.join(ciliumd.values())}", "")
    ciliumd.wait()
    seconds = time.monotonic() - started
    say(f"agents, operator, nodes and cluster DNS are ready {seconds:.1f} s after helm install")
    kubectl(cluster, "get", "nodes")
    return ciliumd


def deploy(cluster: Cluster) -> None:
    """Deathstars, ships and beacons."""
    for name in ("starwars.yaml", "beacons.yaml"):
        cluster.kubectl.apply(HERE / name)
    cluster.kubectl.rollout("deploy/deathstar")
    pods = ("tiefighter", "xwing", "beacon-near", "beacon-far")
    cluster.kubectl.wait("--for=condition=Ready", *(f"pod/{name}" for name in pods))
    kubectl(cluster, "get", "pods,services", "-o", "wide")


def request_landing(cluster: Cluster, ship: str) -> str:
    """Ask the deathstar to land as this ship; shows and returns what came back."""
    done = cluster.kubectl.exec(ship, "curl", "-sS", "-m", str(CURL_SECONDS), "-XPOST", LANDING, check=False)
    answer = (done.stdout + done.stderr).splitlines()
    show(f"kubectl exec {ship} -- curl -s -XPOST {LANDING}", answer[0] if answer else "")
    return done.stdout.strip()


def first_landing(cluster: Cluster) -> None:
    """Both ships land while no policy says otherwise."""
    say("no policy yet: every ship may land")
    for ship in ("tiefighter", "xwing"):
        if request_landing(cluster, ship) != "Ship landed":
            raise Refused(f"{ship} cannot land although no policy says so")


def policy(cluster: Cluster, ciliumd: Ciliumd, directory: Path) -> None:
    """Only the empire lands; the monitor of the deathstar's agent names the policy that is in the way."""
    say("policy rule1: only org=empire may reach the deathstar, on 80/TCP")
    outputs = [directory / node.name for node in cluster.nodes]
    with ExitStack() as stack:
        for node, output in zip(cluster.nodes, outputs, strict=True):
            stack.enter_context(ciliumd.monitor(node, output, "--type", "drop"))
            ciliumd.kubectl.until(output.exists, f"the monitor of {node.name} runs")
        cluster.kubectl.apply(HERE / "policy.yaml")
        show("kubectl apply -f policy.yaml", "")

        def dropped() -> str | None:
            # Every try is another packet: the first may come before policy or monitor.
            cluster.kubectl.exec("xwing", "curl", "-s", "-m", "1", "-XPOST", LANDING, check=False)
            lines = [line for output in outputs for line in output.read_text().splitlines()]
            return next((line for line in lines if "rule1" in line), None)

        line = eventually(dropped, "the monitor shows the drop", seconds=30.0)
    for ship in ("tiefighter", "xwing"):
        request_landing(cluster, ship)
    show("cilium monitor --type drop", str(line))
    kubectl(cluster, "get", "ciliumnetworkpolicies")


def ask(ciliumd: Ciliumd, node: ClusterNode, *words: str, file: Path | None = None) -> str:
    """What ``cilium WORDS`` says on a node, whatever its exit code, and what it is told of with."""
    agent = ciliumd.agent_name(node)
    where = ("exec", "-i", agent, "-n", NAMESPACE, "-c", AGENT, "--", "cilium", *words)
    stdin = file.read_text() if file is not None else None
    return str(ciliumd.kubectl.run(*where, stdin=stdin, check=False).stdout).rstrip()


def denial(cluster: Cluster, ciliumd: Ciliumd) -> None:
    """A denial: what it would change is told before, why it denies afterwards, and it goes again."""
    say("policy grounded denies tiefighters: who would notice?")
    ship = cluster.pod("tiefighter")
    words = ("policy", "diff", "-f", "-")

    def noticed() -> tuple[ClusterPod, str] | None:
        # Which deathstar a request reaches is a matter of chance.
        cluster.kubectl.exec(ship.name, "curl", "-s", "-m", "1", "-XPOST", LANDING, check=False)
        for pod in cluster.pods("class=deathstar"):
            told = ask(ciliumd, pod.node, *words, file=HERE / "deny.yaml")
            if "tiefighter" in told:
                return pod, told
        return None

    deathstar, told = eventually(noticed, "policy diff tells of the tiefighter", seconds=30.0)
    show("cilium policy diff -f deny.yaml", told)
    if request_landing(cluster, ship.name) != "Ship landed":
        raise Refused("the tiefighter cannot land although nothing was put in force")
    cluster.kubectl.apply(HERE / "deny.yaml")
    show("kubectl apply -f deny.yaml", "")
    to = ("--to", f"default/{deathstar.name}", "--dport", "80/TCP")

    def explained(ship: str) -> str:
        return ask(ciliumd, deathstar.node, "policy", "explain", "--from", f"default/{ship}", *to)

    eventually(lambda: "DENIED" in explained(ship.name), "the denial is in force", seconds=30.0)
    request_landing(cluster, ship.name)
    for one in (ship.name, "xwing"):
        show(f"cilium policy explain --from default/{one} {' '.join(to)}", explained(one))
    cluster.kubectl("delete", "-f", str(HERE / "deny.yaml"))
    show("kubectl delete -f deny.yaml", "")

    def lands() -> bool:
        words = ("curl", "-s", "-m", "1", "-XPOST", LANDING)
        return "Ship landed" in cluster.kubectl.exec(ship.name, *words, check=False).stdout

    eventually(lands, "the tiefighter lands again", seconds=30.0)
    request_landing(cluster, ship.name)


def status(cluster: Cluster, ciliumd: Ciliumd) -> None:
    """What ciliumd says of itself: of the cluster, and on one node."""
    say("what ciliumd says of itself")
    show("cilium status --wait", ciliumd.outer("status", "--wait"))
    node = cluster.nodes[0]
    for words in (("status",), ("service", "list"), ("bpf", "tunnel", "list"), ("endpoint", "list")):
        show(
            f"kubectl -n {NAMESPACE} exec {ciliumd.agent_name(node)} -- cilium {' '.join(words)}",
            ciliumd.cilium(node, *words),
        )


def restart(cluster: Cluster, ciliumd: Ciliumd) -> bool:
    """Replace all agents under numbered packets; whether nobody noticed."""
    say("all agents are deleted under load: tiefighter to the beacons on four paths")
    cluster.kubectl.apply(*load.objects({"class": "beacon"}, {"class": "tiefighter"}, "default"))
    client = cluster.pod("tiefighter").actor
    paths = load.paths(cluster.kubectl, client, cluster.pod("beacon-near"), cluster.pod("beacon-far"))
    with Load(client, paths).start() as running:
        running.wait_sent(PACKETS // 10)
        started = time.monotonic()
        ciliumd.restart(POD_DELETE)
        show(
            f"kubectl -n {NAMESPACE} delete pods -l k8s-app=cilium",
            f"ready again after {time.monotonic() - started:.1f} s",
        )
        running.wait_sent(PACKETS // 4)
        report = running.stop()
    print(report, flush=True)
    return not (report.lost or report.reset or report.refused or report.wrongly_allowed)


def remember(cluster: Cluster) -> None:
    """Leave it running, and note what a later --down has to take down."""
    cluster.end_actors()
    cluster.keep()
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    KEPT.write_text(json.dumps({"number": cluster.plan.number}))
    say("kept; look around:")
    print(f"export KUBECONFIG={cluster.kubectl.kubeconfig}")
    print(f"export PATH={cluster.programs}:{Path(sys.executable).parent}:$PATH")
    print(f"kubectl exec xwing -- curl -sS -m 3 -XPOST {LANDING}")
    print(f"kubectl -n {NAMESPACE} exec ds/cilium -c cilium-agent -- cilium monitor --type drop")
    print("cilium status")
    print("take it down: build/dev down")


def down() -> None:
    """Take a kept demo down."""
    number = json.loads(KEPT.read_text())["number"] if KEPT.exists() else None
    for one in plan.registered():
        if one.number == number:
            Cluster(existing=one).down()
            print(f"took down {one.prefix}")
    KEPT.unlink(missing_ok=True)


def main() -> int:
    """Show the demo; 0 when all went as promised."""
    parser = argparse.ArgumentParser(description="deathstar, tiefighter and xwing on Kubernetes")
    parser.add_argument("--keep", action="store_true", help="leave it running")
    parser.add_argument("--down", action="store_true", help="take a kept one down")
    arguments = parser.parse_args()
    if os.geteuid():
        raise Refused("the demo makes namespaces and loads BPF programs: run it as root")
    if arguments.down:
        down()
        return 0
    if KEPT.exists():
        raise Refused("a kept demo is there already: take it down first with --down")
    build()
    sweep()
    with ExitStack() as stack, tempfile.TemporaryDirectory() as directory:
        say("a cluster of two nodes, without CNI and kube-proxy")
        cluster = stack.enter_context(Cluster(nodes=2))
        cluster.load(IMAGE)
        ciliumd = install(cluster)
        deploy(cluster)
        first_landing(cluster)
        policy(cluster, ciliumd, Path(directory))
        denial(cluster, ciliumd)
        status(cluster, ciliumd)
        good = restart(cluster, ciliumd)
        if arguments.keep:
            remember(cluster)
            stack.pop_all()
        else:
            say("taking everything down")
    say("done" if good else "FAILED: see above")
    return 0 if good else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Refused, CommandFailed, NotInTime) as refused:
        sys.exit(f"demo: {refused}")
