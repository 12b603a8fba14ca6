# SPDX-License-Identifier: Apache-2.0
"""
A scripted day of a node: services, policies and endpoints come, change and go; the end is like the beginning.

Every step can be done again after the agent died in it, as Kubernetes and runtimes do.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from ciliumd.cli.errors import CommandError
from lab import kinds, manifests
from lab.maps import dump
from lab.meaning import Meaning, meaning
from lab.node import Node
from lab.pod import Pod
from lab.waiting import NotInTime, eventually

VIP: Final = "10.96.0.30"
WORKER: Final = {"app": "worker"}
LATE: Final = "10.11.0.200"
STEP_SECONDS: Final = 15.0
HOST_PORT: Final = 8088


@dataclass(frozen=True)
class Step:
    """*write* changes manifests, *ask* is what a runtime requests; one that *is_seen* changes maps."""

    name: str
    write: Callable[[Node], object] = lambda _: None
    ask: Callable[[Node], object] = lambda _: None
    is_seen: bool = True


class Workload:
    """The script on a node, whose workers it makes."""

    def __init__(self, node: Node) -> None:
        self.node = node
        for name in ("worker-a", "worker-b"):
            node.pod(name, WORKER).serve(tcp=(80, 8080))
        node.apply("pod-default-late", manifests.pod("late", WORKER))
        self.late = Pod("late", "default", cgroup=node.cgroup.path)
        node.pods[self.late.key] = self.late
        self.steps: Sequence[Step] = (
            Step("a service comes", lambda node: node.apply("work", _service(80))),
            Step("a backend comes", ask=self._add),
            Step("the service's ports change", lambda node: node.apply("work", _service(8080, udp=True))),
            Step("a policy comes", lambda node: node.apply("work-policy", _policy(8080))),
            Step(
                "the policy changes",
                lambda node: node.apply("work-policy", _policy(80, cidr="203.0.113.0/24")),
            ),
            Step("services of every kind come", lambda node: node.apply("kinds", *kinds.every_kind(WORKER))),
            Step(
                "who may ask is who may not",
                lambda node: node.apply("kinds", *kinds.every_kind(WORKER, denies=True)),
            ),
            Step("a host port comes", lambda node: self._label(node, WORKER, host_port=HOST_PORT)),
            Step(
                "local policies and affinity are exchanged",
                lambda node: node.apply("kinds", *kinds.every_kind(WORKER, denies=True, exchanged=True)),
            ),
            Step("a pod's labels change", lambda node: self._label(node, {"app": "worker", "tier": "late"})),
            Step("a backend goes", ask=self._delete),
            Step("the policy goes", lambda node: node.delete("work-policy")),
            Step("services of every kind go", lambda node: node.delete("kinds")),
            Step("the service goes", lambda node: node.delete("work")),
            Step("labels are as before", lambda node: self._label(node, WORKER), is_seen=False),
        )
        self.before = settled(node)
        self.after: list[Meaning] = []

    def rehearse(self) -> None:
        """Do every step once, undisturbed, and note what the maps mean after each."""
        last = self.before
        for step in self.steps:
            last = self.do(step, after=last)
            self.after.append(last)
        differences = last.differences(self.before)
        assert differences == [], "the end is not like the beginning"

    def do(self, step: Step, *, after: Meaning) -> Meaning:
        """Do a step undisturbed; what the maps mean when it is through."""
        self.begin(step)
        if step.is_seen:
            eventually(lambda: after.differences(meaning(dump(self.node.bpf_root))), step.name)
        return settled(self.node)

    def begin(self, step: Step) -> str:
        """Do a step, and say why it was refused; what a dying agent does not answer is given up."""
        step.write(self.node)
        try:
            step.ask(self.node)
        except CommandError as refused:
            return str(refused)
        return ""

    def wait(self, number: int) -> bool:
        """Wait until step *number* is in the maps; False when the agent has died before."""
        process = self.node.agent.process
        assert process is not None
        self._until(number, lambda: not process.running, every=0.02)
        return process.running

    def finish(self, number: int) -> None:
        """Do step *number* once more with an agent that lives, and wait until it is in the maps."""
        self.steps[number].ask(self.node)
        self._until(number)

    def _until(
        self, number: int, or_else: Callable[[], bool] = lambda: False, *, every: float = 0.05
    ) -> None:
        """Until step *number* is in the maps; what is still missing is said when it is too late."""
        wanted = self.after[number]
        found = [Meaning()]

        def there() -> bool:
            found[0] = meaning(dump(self.node.bpf_root))
            return or_else() or (not wanted.differences(found[0]) and not found[0].broken)

        try:
            eventually(there, self.steps[number].name, seconds=STEP_SECONDS, every=every)
        except NotInTime as late:
            lines = "\n".join([*wanted.differences(found[0]), *found[0].broken])
            raise NotInTime(f"{late}\n{lines}\n{self.node.agent.log_tail()}") from None

    def restore(self) -> None:
        """Back to the beginning, with an agent that lives."""
        for name in ("work", "work-policy", "kinds"):
            with suppress(FileNotFoundError):
                self.node.delete(name)
        self._label(self.node, WORKER)
        self._delete(self.node)
        eventually(
            lambda: not self.before.differences(meaning(dump(self.node.bpf_root))),
            "all is as before",
            seconds=STEP_SECONDS,
        )

    def _add(self, node: Node) -> None:
        body = {"netns": str(self.late.netns.path), "pod": self.late.key, "ip": LATE}
        self.late.endpoint = node.agent.client.put("endpoint", body)

    def _delete(self, node: Node) -> None:
        for one in node.agent.get("endpoint"):
            if one["status"]["external-identifiers"]["pod-name"] == self.late.key:
                node.agent.client.delete(f"endpoint/{one['id']}")

    def _label(self, node: Node, labels: dict[str, str], *, host_port: int = 0) -> None:
        pod = manifests.pod("late", labels)
        if host_port:
            kinds.add_host_port(pod, host_port, 80)
        node.apply("pod-default-late", pod)


def settled(node: Node) -> Meaning:
    """
    What the maps mean once they do not change any more and no row of them is unused.

    Quiet alone is not enough: rules that name a new prefix come a round after its row, however long that is.
    """
    last = [meaning(dump(node.bpf_root))]

    def through() -> bool:
        regenerated = node.agent.has_regenerated()
        previous, last[0] = last[0], meaning(dump(node.bpf_root))
        return regenerated and previous == last[0] and not last[0].broken and not last[0].unused

    try:
        eventually(through, "maps settle", seconds=STEP_SECONDS, every=0.3)
    except NotInTime as late:
        raise NotInTime(f"{late}\n{last[0].broken}\n{last[0].unused}\n{node.agent.log_tail()}") from None
    return last[0]


def _service(target: int, *, udp: bool = False) -> manifests.Object:
    ports: list[tuple[str, int, int | str]] = [("TCP", 80, target)]
    if udp:
        ports += [("UDP", 53, 53), ("TCP", 81, 81)]
    return manifests.service("work", VIP, WORKER, ports=ports)


def _policy(port: int, *, cidr: str | None = None) -> manifests.Object:
    ingress: list[manifests.Object] = [
        {"fromEndpoints": [{"matchLabels": {"app": "sender"}}], "toPorts": manifests.to_ports((port, "TCP"))}
    ]
    if cidr is not None:
        ingress.append({"fromCIDR": [cidr]})
    return manifests.cilium_policy("work", {"endpointSelector": {"matchLabels": WORKER}, "ingress": ingress})
