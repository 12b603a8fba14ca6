# SPDX-License-Identifier: Apache-2.0
"""
P8: what a change of a policy or of an identity touches, by kind of change, without API server and kernel.

Two goals, counts both: no row of an endpoint that a change does not concern is written or deleted, and no
more policy versions are made than endpoints must change theirs.  An identity that comes or goes changes
nobody's: it becomes a row of the versions that know it.

Beside them, the processor time of plan and reconciler, and what it is with a fifth of the policies.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from bench.policynode import CLASSES_MAP, OTHERS_PODS, RULES_MAP, Cost, PolicyNode, labelled, lets_in
from bench.result import Figure, Goal, Section, Table
from bench.samples import percentile, spread
from ciliumd.daemon import stages
from unit.daemon import nodes

NOTHING: Final = Goal(at_most=0)
NAMESPACE: Final = "ns1"
# A pod of that namespace, and one that a policy waits for.
POD, AWAITED = 11, 1
NEWCOMER: Final = 40_000
PREFIX: Final = "203.0.113.0/24"
PORT, ANOTHER_PORT = 20_000, 20_010
# With so many times fewer policies the same changes are made again.
FEWER: Final = 5
COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "rules": (RULES_MAP,),
    "classes": (CLASSES_MAP,),
    "words": (stages.STATES,),
    "facts": (stages.FACTS,),
    "ipcache": (stages.IPCACHE, stages.IPCACHE_LPM),
    "files": (stages.IDENTITY_FILE, stages.PREFIX_FILE, stages.ENDPOINT_FILE),
}


class Step(NamedTuple):
    """One change; *versions* endpoints must change theirs.  Without a name it only makes things ready."""

    name: str
    act: Callable[[], object]
    concerned: Collection[int] = ()
    versions: int = 0


def about_policies(node: PolicyNode, whom: str, subject: Any, concerned: Sequence[int]) -> Iterator[Step]:
    """A policy comes, changes and goes."""

    def write(port: int, *peers: object) -> Callable[[], object]:
        made = lets_in("changed", subject, *peers, port=port, namespace=NAMESPACE)
        return lambda: node.add_policy(made)

    def delete() -> None:
        node.delete_policy(lets_in("changed", subject, port=PORT, namespace=NAMESPACE))

    one, other = labelled(app="peer7"), labelled(app="peer8")
    judged = (concerned, len(concerned))
    yield Step(f"policy of {whom}: added", write(PORT, one), *judged)
    yield Step(f"policy of {whom}: another port", write(ANOTHER_PORT, one), *judged)
    yield Step(f"policy of {whom}: deleted", delete, *judged)
    yield Step("", write(PORT, one, other), *judged)
    yield Step(f"policy of {whom}: one allow of two revoked", write(PORT, one), *judged)
    yield Step("", delete, *judged)
    yield Step(f"policy of {whom}: added, with a new CIDR", write(PORT, nodes.cidr(PREFIX)), *judged)
    yield Step(f"policy of {whom}: deleted, with its CIDR", delete, *judged)


def about_identities(node: PolicyNode) -> Iterator[Step]:
    """Labels of pods and namespaces change, and identities of other nodes come and go."""
    ten = node.namespace(NAMESPACE)

    def pod(
        name: str, number: int, concerned: Collection[int], versions: int = 0, **labels: str
    ) -> Iterator[Step]:
        yield Step(f"labels of a pod: {name}", lambda: node.label_pod(number, **labels), concerned, versions)
        yield Step("", lambda: node.label_pod(number))
        yield Step("", node.forget_identities)

    def namespace(name: str, concerned: Collection[int], **labels: str) -> Iterator[Step]:
        act = partial(node.label_namespace, NAMESPACE, **labels)
        yield Step(f"labels of a namespace of {len(ten)} pods: {name}", act, concerned)
        yield Step("", lambda: node.label_namespace(NAMESPACE))
        yield Step("", node.forget_identities)

    def identity(name: str, concerned: Collection[int], **labels: str) -> Iterator[Step]:
        yield Step(f"new identity: {name}", lambda: node.add_identity(NEWCOMER, labels), concerned)
        yield Step(f"identity gone: {name}", lambda: node.delete_identity(NEWCOMER), concerned)

    yield Step("pod of another node: comes", lambda: node.publish(OTHERS_PODS))
    yield Step("pod of another node: goes", lambda: node.withdraw(OTHERS_PODS))
    nobody, everybody = "nobody selects by them", "policies of all pods select by them"
    yield from pod(nobody, POD, [POD], color="red")
    yield from pod("one more policy is about it", AWAITED, [AWAITED], 1, tier="extra")
    yield from pod(everybody, POD, node.endpoints, role="client")
    yield from identity("nobody selects it", (), color="red")
    yield from identity("policies of all pods select it", node.endpoints, role="client")
    yield from namespace(nobody, ten, color="red")
    yield from namespace(everybody, node.endpoints, team="blue")


def steps(node: PolicyNode) -> list[Step]:
    """Every kind of change, each of which leaves the node as it was or as the next one needs it."""
    one = nodes.subject(namespace=NAMESPACE, app=f"app{POD}")
    return [
        *about_policies(node, "one pod", one, [POD]),
        *about_policies(node, "ten pods", nodes.subject(namespace=NAMESPACE), node.namespace(NAMESPACE)),
        *about_identities(node),
    ]


def taken(node: PolicyNode, kinds: Sequence[Step], *, turns: int) -> dict[str, list[Cost]]:
    """What every kind of change cost, in turn after turn."""
    costs: dict[str, list[Cost]] = {step.name: [] for step in kinds if step.name}
    for _ in range(turns):
        for step in kinds:
            step.act()
            cost = node.settle(step.concerned)
            if step.name:
                costs[step.name].append(cost)
    return costs


def measure(*, endpoints: int, policies: int, turns: int) -> Section:
    """All kinds of changes in turns, on a node with all policies and on one with few."""
    amount = f"{endpoints} endpoints and {policies} policies on the node"
    title = f"P8  what a change touches, and processor time of plan and reconciler, {amount}"
    section = Section("changes", title, case="P8")
    few = policies // FEWER
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(contextlib.closing(PolicyNode(endpoints=endpoints, policies=policies)))
        kinds = steps(node)
        costs = taken(node, kinds, turns=turns)
        other = stack.enter_context(contextlib.closing(PolicyNode(endpoints=endpoints, policies=few)))
        fewer = taken(other, steps(other), turns=turns)
    judge(section, kinds, costs)
    section.table = table(kinds, costs, fewer, few)
    start = node.start
    section.add(
        Figure.of(
            "everything at once", start.milliseconds, "ms",
            note=f"{start.versions} versions, {start.written.total()} rows",
        )
    )  # fmt: skip
    section.data = {name: [cost.plain() for cost in each] for name, each in costs.items()}
    return section


def judge(section: Section, kinds: Sequence[Step], costs: Mapping[str, Sequence[Cost]]) -> None:
    """Goals over all kinds of changes; a figure that misses names those that did."""
    strays: Counter[str] = Counter()
    beyond: Counter[str] = Counter()
    for step in kinds:
        for cost in costs.get(step.name, ()):
            strays[step.name] += cost.strays
            beyond[step.name] += max(0, cost.versions - step.versions)
    for name, found in (
        ("rows written or deleted of endpoints that no change concerned", strays),
        ("policy versions made beyond those of endpoints that must change theirs", beyond),
    ):
        note = "; ".join(f"{kind}: {count}" for kind, count in found.items() if count)
        note = note or f"{len(costs)} kinds of changes, {sum(map(len, costs.values()))} changes"
        section.add(Figure.of(name, found.total(), goal=NOTHING, note=note))
    for name, each in costs.items():
        times = [cost.milliseconds for cost in each]
        section.add(
            Figure.of(
                f"{name}, p50 of {len(times)}", percentile(times, 0.5), "ms",
                note=f"min / median / max {spread(times, 1)}",
            )
        )  # fmt: skip


def table(
    kinds: Sequence[Step], costs: Mapping[str, Sequence[Cost]], fewer: Mapping[str, Sequence[Cost]], few: int
) -> Table:
    """Rows of each map by kind of change, the most of all turns: written, and deleted after a minus."""
    columns = (
        "change",
        "endpoints",
        "versions",
        "rounds",
        "computed",
        *COLUMNS,
        "calls",
        "ms",
        f"ms, {few} policies",
    )
    made = Table(columns)
    for step in kinds:
        if not step.name:
            continue
        each = costs[step.name]
        rows = [
            told(max(sum(cost.written[one] for one in maps) for cost in each),
                 max(sum(cost.deleted[one] for one in maps) for cost in each))
            for maps in COLUMNS.values()
        ]  # fmt: skip
        counts = (max(cost.versions for cost in each), max(cost.rounds for cost in each))
        computed = max(cost.computed.total() for cost in each)
        times = [
            f"{percentile([cost.milliseconds for cost in one[step.name]], 0.5):.1f}" for one in (costs, fewer)
        ]
        calls = max(cost.calls for cost in each)
        made.rows.append((step.name, len(step.concerned), *counts, computed, *rows, calls, *times))
    return made


def told(written: int, deleted: int) -> str:
    """So many rows written and so many deleted."""
    return f"{written}" if not deleted else f"{written} -{deleted}"
