# SPDX-License-Identifier: Apache-2.0
"""
The demo: namespaces as pods, a service, a policy, its drops, and a restart nobody notices.

    python examples/demo/run.py            show it and take it down
    python examples/demo/run.py --keep     leave it running
    python examples/demo/run.py --down     take a kept one down

Needs root and curl; touches nothing but namespaces, pins and a control group of its own.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path[:0] = [str(REPOSITORY / "src"), str(REPOSITORY / "tests")]

from lab import naming, sweep  # noqa: E402
from lab.node import Node  # noqa: E402
from lab.pod import Pod  # noqa: E402
from lab.process import Process, alive  # noqa: E402
from lab.traffic import Flood, Flow  # noqa: E402
from lab.waiting import eventually  # noqa: E402
from lab.world import World  # noqa: E402

KEPT = REPOSITORY / "build" / "out" / "demo" / "kept.json"
OWNER = "demo"
HOST = "deathstar.default.svc.cluster.local"
SERVICE, BEACON = "10.96.0.10", "10.96.0.11"
CURL_SECONDS = 3
PER_FLOW = 60_000
STARTED = time.monotonic()


class Refused(Exception):
    """The demo cannot be shown; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What is on it."""

    node: Node
    deathstar: Pod
    tiefighter: Pod
    xwing: Pod
    server: Process


def say(text: str) -> None:
    """A line of progress."""
    print(f"\n[{time.monotonic() - STARTED:5.1f}s] {text}", flush=True)


def show(command: str, output: str) -> None:
    """A command and what it printed."""
    print("\n".join(filter(None, (f"$ {command}", output.rstrip()))), flush=True)


def build(stack: ExitStack, *, keep: bool) -> Stage:
    """World, node, agent, pods, service."""
    if keep:
        naming.own_as(OWNER)
    world = World()
    stack.callback(world.remove)
    node = Node(world, name="node", outlive=keep)
    stack.callback(node.remove)
    for manifest in sorted((HERE / "manifests").glob("*.yaml")):
        shutil.copy(manifest, node.manifests / manifest.name)
    started = time.monotonic()
    node.start()
    say(f"agent is ready after {time.monotonic() - started:.1f} s; its manifests: {node.manifests}")
    pods = []
    for name in ("deathstar", "tiefighter", "xwing"):
        pod = Pod(name, "default", cgroup=node.cgroup.path)
        node.pods[pod.key] = pod
        added = node.agent.cli(
            "endpoint",
            "add",
            str(pod.netns.path),
            "--pod",
            pod.key,
            "-o",
            "json",
            program="ciliumd.cli.ciliumd",
        )
        pod.endpoint = json.loads(added.stdout)
        node.wait_endpoint(pod)
        show(f"ciliumd endpoint add {pod.netns.name} --pod {pod.key}", f"Endpoint {pod.id} {pod.address}")
        pods.append(pod)
    server = Process(
        [sys.executable, "-S", HERE / "deathstar.py", "8080"],
        netns=pods[0].netns.path,
        cgroup=node.cgroup.path,
        outlive=keep,
    )
    stack.callback(server.end)
    node.wait_service(f"{SERVICE}:80", 1)
    node.wait_service(f"{BEACON}:9000", 1)
    return Stage(node, *pods, server)


def request_landing(stage: Stage, ship: Pod) -> str:
    """Ask the deathstar to land as this ship; prints and returns what came back."""
    url = f"{HOST}/v1/request-landing"
    process = Process(
        ["curl", "-sS", "-m", str(CURL_SECONDS), "--resolve", f"{HOST}:80:{SERVICE}", "-XPOST", url],
        netns=ship.netns.path,
        cgroup=stage.node.cgroup.path,
        output=subprocess.PIPE,
    )
    output = process.popen.communicate(timeout=CURL_SECONDS + 5)[0].decode().strip()
    show(f"{ship.name}: curl -s -XPOST {url}", output)
    return output


def first_landing(stage: Stage) -> None:
    """Both ships land while no policy says otherwise."""
    eventually(
        lambda: (
            stage.tiefighter.inside.call("http_request", address=SERVICE, port=80)["outcome"] == "answered"
        ),
        "the deathstar answers",
    )
    say("no policy yet: every ship may land")
    for ship in (stage.tiefighter, stage.xwing):
        request_landing(stage, ship)


def policy(stage: Stage, directory: Path) -> None:
    """Only the empire lands; the drop names the policy."""
    say("policy rule1: only org=empire may reach the deathstar")
    before = stage.node.policy_revision()
    shutil.copy(HERE / "policies" / "rule1.yaml", stage.node.manifests / "rule1.yaml")
    revision = stage.node.wait_policy_after(before)
    show(f"cilium policy wait {revision}", "")
    output = directory / "monitor"
    with stage.node.agent.monitor(output, "--type", "drop"):
        for ship in (stage.tiefighter, stage.xwing):
            request_landing(stage, ship)
        line = eventually(
            lambda: (
                next((line for line in output.read_text().splitlines() if "rule1" in line), None)
                or (stage.xwing.reaches(SERVICE, 80) and None)
            ),
            "the monitor shows the drop",
        )
    show("cilium monitor --type drop", str(line))
    explained = stage.node.agent.cli(
        "policy",
        "explain",
        "--from",
        stage.xwing.key,
        "--to",
        stage.deathstar.key,
        "--dport",
        "8080/TCP",
        check=False,
    )
    show(
        "cilium policy explain --from default/xwing --to default/deathstar --dport 8080/TCP", explained.stdout
    )


def status(stage: Stage) -> None:
    """What the agent says of itself."""
    say("what the agent says")
    for command in (("status",), ("endpoint", "list"), ("service", "list")):
        show(f"cilium {' '.join(command)}", stage.node.agent.cilium(*command))


def restart(stage: Stage) -> bool:
    """Kill the agent under numbered packets and start it again; whether nobody noticed."""
    say("restart under numbered packets: tiefighter to xwing directly and through a service, each 10,000/s")
    agent = stage.node.agent
    people = stage.tiefighter.outside
    flows = [
        Flow("pod to pod", stage.xwing.address, 9000, 9000),
        Flow("through the service", BEACON, 9000, 9001),
    ]
    kept = people.call("http_open", address=SERVICE, port=80)
    denied = stage.deathstar.outside
    denied.call("flood_receive", port=9002)
    stage.xwing.outside.call(
        "flood_send",
        name="denied",
        flows=[{"flow": 0, "address": stage.deathstar.address, "port": 9002, "rate": 1000, "source_port": 0}],
    )
    with Flood(people, stage.xwing.outside, flows).start(limit=PER_FLOW) as flood:
        flood.wait_sent(PER_FLOW // 4)
        killed_at = time.monotonic()
        code = agent.stop(signal.SIGKILL)
        show("kill -9 AGENT", f"agent ended with {code}")
        flood.wait_sent(PER_FLOW // 8)
        agent.start()
        show("ciliumd agent ...", f"ready again {time.monotonic() - killed_at:.1f} s after the kill")
        flood.wait(60.0)
        fates = flood.stop().values()
    refused = stage.xwing.outside.call("flood_end", name="denied")["flows"]["0"]["sent"]
    allowed = denied.call("flood_received", port=9002)
    denied.call("flood_close", port=9002)
    alive_still = people.call("http_ask", handle=kept["handle"], method="POST", path="/v1/request-landing")
    for fate in fates:
        print(f"  {fate}")
    print(f"  against the policy: sent={refused} wrongly_allowed={allowed}")
    print(f"  connection opened before the kill: {alive_still['outcome']}")
    sent, lost = sum(fate.sent for fate in fates), sum(fate.lost for fate in fates)
    print(f"sent={sent} lost={lost}", flush=True)
    return lost == 0 and allowed == 0 and alive_still["outcome"] == "answered"


def remember(stage: Stage) -> None:
    """Note what a later --down has to end."""
    processes = [one for one in (stage.node.agent.process, stage.server) if one is not None]
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    KEPT.write_text(json.dumps({"pids": [one.pid for one in processes]}))
    for pod in stage.node.pods.values():
        for actor in (pod.outside, pod.inside):
            actor.end()
    say("kept; look around:")
    print(f"export CILIUM_SOCK={stage.node.agent.socket} PYTHONPATH={REPOSITORY / 'src'}")
    print(f"{sys.executable} -m ciliumd.cli.main status")
    print(f"nsenter --net={stage.tiefighter.netns.path} curl -XPOST {SERVICE}/v1/request-landing")
    print("take it down: build/dev down")


def down() -> None:
    """Take a kept demo down."""
    if KEPT.exists():
        for pid in json.loads(KEPT.read_text())["pids"]:
            if alive(pid) and str(REPOSITORY) in Path(f"/proc/{pid}/environ").read_text(errors="replace"):
                os.kill(pid, signal.SIGTERM)
                eventually(lambda pid=pid: not alive(pid), f"process {pid} ends", seconds=20.0)
        KEPT.unlink()
    removed = sweep.remove_owned_by(OWNER)
    print("\n".join(f"removed {path}" for path in removed) or "nothing to take down")


def main() -> int:
    """Show the demo; 0 when all went as promised."""
    parser = argparse.ArgumentParser(description="deathstar, tiefighter and xwing")
    parser.add_argument("--keep", action="store_true", help="leave it running")
    parser.add_argument("--down", action="store_true", help="take a kept one down")
    arguments = parser.parse_args()
    if os.geteuid():
        raise Refused("the demo makes network namespaces and loads BPF programs: run it as root")
    if arguments.down:
        down()
        return 0
    if KEPT.exists():
        raise Refused("a kept demo is there already: take it down first with --down")
    if shutil.which("curl") is None:
        raise Refused("curl is missing: apt-get install curl")
    sweep.sweep()
    with ExitStack() as stack, tempfile.TemporaryDirectory() as directory:
        say("making a world, a node and three pods")
        stage = build(stack, keep=arguments.keep)
        first_landing(stage)
        policy(stage, Path(directory))
        status(stage)
        good = restart(stage)
        if arguments.keep:
            remember(stage)
            stack.pop_all()
        else:
            say("taking everything down")
    say("done" if good else "FAILED: see above")
    return 0 if good else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Refused as refused:
        sys.exit(f"demo: {refused}")
