# SPDX-License-Identifier: Apache-2.0
"""
The picture of a whole cluster: what its workloads say, judged and drawn.  Pure.

Components are called as their workloads are; those that are not installed are disabled, which is a
fault only for the agent and the operator.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ciliumd.cli.output import table

Json = dict[str, Any]

PADDING: Final = 4
DAEMON_SET, DEPLOYMENT = "DaemonSet", "Deployment"
RED, GREEN, YELLOW, BLUE, MAGENTA, CYAN = 31, 32, 33, 34, 35, 36


@dataclass(frozen=True, slots=True)
class Component:
    """A part of Cilium: its workload, the labels of its pods, and its line beside the picture, if any."""

    name: str
    kind: str
    selector: str
    title: str = ""
    required: bool = False


COMPONENTS: Final = (
    Component("cilium", DAEMON_SET, "k8s-app=cilium", "Cilium:", required=True),
    Component("cilium-operator", DEPLOYMENT, "io.cilium/app=operator", "Operator:", required=True),
    Component("cilium-envoy", DAEMON_SET, "k8s-app=cilium-envoy", "Envoy DaemonSet:"),
    Component("hubble-relay", DEPLOYMENT, "k8s-app=hubble-relay", "Hubble Relay:"),
    Component("clustermesh-apiserver", DEPLOYMENT, "k8s-app=clustermesh-apiserver", "ClusterMesh:"),
    Component("hubble-ui", DEPLOYMENT, "k8s-app=hubble-ui"),
)


@dataclass(frozen=True, slots=True)
class Counts:
    """Pods of a workload."""

    desired: int
    ready: int
    available: int
    unavailable: int


@dataclass(frozen=True, slots=True)
class PodState:
    """A pod of a component: its phase, its images, and what is wrong with its containers."""

    name: str
    phase: str
    images: tuple[str, ...]
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ComponentState:
    """What was found of a component; no counts: it is not installed."""

    component: Component
    counts: Counts | None = None
    pods: tuple[PodState, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with a *pod* of a component, or with all of it."""

    component: str
    pod: str
    text: str


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """All that is shown; *managed* of *pods* have an endpoint."""

    components: tuple[ComponentState, ...]
    managed: int
    pods: int
    chart: str = ""
    errors: tuple[Finding, ...] = field(default=())
    warnings: tuple[Finding, ...] = field(default=())


def judge(components: Iterable[ComponentState]) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """What is wrong with the components, and what may become so."""
    errors, warnings = [], []
    for state in components:
        name, kind = state.component.name, state.component.kind
        if state.counts is None:
            if state.component.required:
                errors.append(Finding(name, name, f"{kind} {name} not found"))
            continue
        counts = state.counts
        if counts.ready < counts.desired:
            missing = counts.desired - counts.ready
            errors.append(Finding(name, name, f"{missing} pods of {kind} {name} are not ready"))
        if not counts.desired and state.component.required:
            errors.append(Finding(name, name, f"{kind} {name} wants no pods"))
        for pod in state.pods:
            errors += [Finding(name, pod.name, text) for text in pod.errors]
            if pod.phase == "Pending":
                warnings.append(Finding(name, pod.name, "pod is pending"))
            elif pod.phase in {"Failed", "Unknown"}:
                errors.append(Finding(name, pod.name, f"pod is {pod.phase.lower()}"))
    return tuple(errors), tuple(warnings)


class Brush:
    """Colours text, or leaves it as it is."""

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours

    def __call__(self, colour: int, text: str) -> str:
        """*text* in *colour*."""
        return f"\033[{colour}m{text}\033[0m" if self._colours else text


def render(status: ClusterStatus, *, colours: bool = False) -> str:
    """The picture, the workloads, and what is wrong."""
    brush = Brush(colours=colours)
    return "".join(
        (
            _picture(status, brush),
            "\n",
            table(_rows(status, brush), min_width=0, padding=PADDING),
            table(_findings("Errors:", status.errors), min_width=0, padding=PADDING),
            table(_findings("Warnings:", status.warnings), min_width=0, padding=PADDING),
        )
    )


def _picture(status: ClusterStatus, brush: Brush) -> str:
    logo = (
        brush(CYAN, " /¯¯") + brush(YELLOW, "\\__/") + brush(GREEN, "¯¯\\"),
        brush(CYAN, " \\__") + brush(RED, "/¯¯\\") + brush(GREEN, "__/"),
        brush(GREEN, " /¯¯") + brush(RED, "\\__/") + brush(MAGENTA, "¯¯\\"),
        brush(GREEN, " \\__") + brush(BLUE, "/¯¯\\") + brush(MAGENTA, "__/"),
        brush(BLUE, "    \\__/") + "   ",
    )
    shown = [state for state in status.components if state.component.title]
    lines = table(
        [(state.component.title, _summary(state, status, brush)) for state in shown],
        min_width=0,
        padding=PADDING,
    ).splitlines()
    body = [f"{drawn}    {line}" for drawn, line in zip(logo, lines, strict=True)]
    return "\n".join([brush(YELLOW, "    /¯¯\\"), *body, ""])


def _summary(state: ComponentState, status: ClusterStatus, brush: Brush) -> str:
    name = state.component.name
    errors = sum(finding.component == name for finding in status.errors)
    warnings = sum(finding.component == name for finding in status.warnings)
    said = [brush(RED, f"{errors} errors")] * bool(errors) + [brush(YELLOW, f"{warnings} warnings")] * bool(
        warnings
    )
    if not said:
        said.append(brush(CYAN, "disabled") if state.counts is None else brush(GREEN, "OK"))
    return ", ".join(said)


def _rows(status: ClusterStatus, brush: Brush) -> Iterator[Sequence[str]]:
    installed = [state for state in status.components if state.counts is not None]
    for state in installed:
        if state.counts is not None:
            yield (state.component.kind, state.component.name, _counts(state.counts, brush))
    header = "Containers:"
    for state in installed:
        phases = Counter(pod.phase for pod in state.pods)
        yield (header, state.component.name, ", ".join(_phase(*one, brush) for one in sorted(phases.items())))
        header = ""
    yield ("Cluster Pods:", f"{status.managed}/{status.pods} managed by Cilium")
    if status.chart:
        yield ("Helm chart version:", status.chart)
    header = "Image versions"
    for state in installed:
        images = Counter(image for pod in state.pods for image in pod.images)
        for image, count in sorted(images.items()):
            yield (header, state.component.name, f"{image}: {count}")
            header = ""


def _counts(counts: Counts, brush: Brush) -> str:
    colour = GREEN if counts.ready >= counts.desired else YELLOW
    said = [f"Desired: {counts.desired}"]
    if counts.ready:
        said.append("Ready: " + brush(colour, f"{counts.ready}/{counts.desired}"))
    if counts.available:
        said.append("Available: " + brush(colour, f"{counts.available}/{counts.desired}"))
    if counts.unavailable:
        said.append("Unavailable: " + brush(RED, f"{counts.unavailable}/{counts.desired}"))
    return ", ".join(said)


def _phase(phase: str, count: int, brush: Brush) -> str:
    return f"{phase}: {brush(RED if phase in {'Failed', 'Unknown'} else GREEN, str(count))}"


def _findings(header: str, findings: Iterable[Finding]) -> Iterator[Sequence[str]]:
    for finding in findings:
        yield (header, finding.component, finding.pod, finding.text)
        header = ""


def document(status: ClusterStatus) -> Json:
    """The same as JSON, in the words of Cilium's CLI."""
    installed = [state for state in status.components if state.counts is not None]
    return {
        "pod_state": {
            state.component.name: {
                "Type": state.component.kind,
                "Desired": state.counts.desired,
                "Ready": state.counts.ready,
                "Available": state.counts.available,
                "Unavailable": state.counts.unavailable,
            }
            for state in installed
            if state.counts is not None
        },
        "phase_count": {
            state.component.name: dict(Counter(pod.phase for pod in state.pods)) for state in installed
        },
        "pods_count": {"All": status.pods, "ByCilium": status.managed},
        "image_count": {
            state.component.name: dict(Counter(image for pod in state.pods for image in pod.images))
            for state in installed
        },
        "helm_chart_version": status.chart,
        "errors": _by_pod(status),
    }


def _by_pod(status: ClusterStatus) -> Json:
    found: Json = {}
    for kind, findings in (("Errors", status.errors), ("Warnings", status.warnings)):
        for finding in findings:
            pods = found.setdefault(finding.component, {})
            pods.setdefault(finding.pod, {}).setdefault(kind, []).append(finding.text)
    return found
