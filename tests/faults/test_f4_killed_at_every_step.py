# SPDX-License-Identifier: Apache-2.0
"""
F4: the agent dies at the k-th kernel call of a scripted workload.

Two series, because the agent writes maps and files in one thread and talks netlink in another: every k of
both with ``--long``, a sample without.  The maps the dead agent left are followed as packets follow them:
no frontend leads to a missing backend, every endpoint is under the policy of before or of after.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import pytest

from ciliumd import abi
from lab.figures import Figures
from lab.injection import Injection, Step
from lab.maps import dump
from lab.meaning import Meaning, Sources, meaning
from lab.node import Node
from lab.probers import Probers
from lab.workload import Workload, settled

MAPS_AND_FILES: Final = ("bpf", "fsync", "rename", "unlink")
NETLINK: Final = ("sendto",)
SAMPLE: Final = 6
SEED: Final = 4


def half_done(before: Meaning, after: Meaning, left: Meaning) -> list[str]:
    """What is wrong with the maps a dead agent left between two states."""
    problems = list(left.broken)
    for name, backends in left.services.items():
        known = {*before.services.get(name, ()), *after.services.get(name, ())}
        problems += [f"{name}: backend {one} of neither state" for one in backends if one not in known]
    for name, text in left.frontends.items():
        if text not in (before.frontends.get(name), after.frontends.get(name)):
            problems.append(f"{name}: of neither state: {text}")
    for name, sources in left.sources.items():
        if not of_either(before.sources.get(name), after.sources.get(name), sources):
            problems.append(f"{name}: sources of neither state: {sources}")
    for address, policy in left.policies.items():
        if policy not in (before.policies.get(address), after.policies.get(address)):
            problems.append(f"{address}: policy of neither state: {policy}")
    for name, identity in left.identities.items():
        if identity not in (before.identities.get(name), after.identities.get(name)):
            problems.append(f"{name}: identity {identity} of neither state")
    return problems


def of_either(before: Sources | None, after: Sources | None, left: Sources) -> bool:
    """
    Whether ranges let nobody in whom neither state lets in.

    Under another policy they are another set, which is there as a whole or is not read; under the same one
    new ranges come before old ones go.
    """
    policy, ranges = left
    known = [found for one in (before, after) if one is not None for name, found in [one] if name == policy]
    if len(known) < 2:
        return ranges in known
    return known[0] & known[1] <= ranges <= known[0] | known[1]


def calls_of(workload: Workload, calls: Sequence[str], log: Path) -> list[Step]:
    """Those of *calls* that the busiest thread makes in the whole workload."""
    assert workload.node.agent.process is not None
    with Injection(workload.node.agent.process.pid, calls, log) as tracing:
        for number, step in enumerate(workload.steps):
            workload.begin(step)
            assert workload.wait(number)
        settled(workload.node)
        return tracing.steps()


def killed_at(workload: Workload, call: Step, log: Path) -> tuple[bool, list[str]]:
    """
    Kill the agent at a call: whether it got there, and what is wrong with the maps then.

    An agent runs again after that.
    """
    agent = workload.node.agent
    assert agent.process is not None
    problems: list[str] = []
    name, nth = call
    with Injection(agent.process.pid, [name], log, effect="signal=KILL", when=str(nth)) as tracing:
        for number, step in enumerate(workload.steps):
            if workload.begin(step):
                # Who was asked and did not answer is dying: half of the step may look like all of it.
                agent.process.wait()
            if not workload.wait(number):
                break
    if tracing.reached(nth):
        # Maybe behind the last step, at a file or a row that no step waits for.
        agent.process.wait()
    died = not agent.process.running
    if died:
        before = workload.after[number - 1] if number else workload.before
        left = meaning(dump(workload.node.bpf_root))
        problems = [f"{step.name}: {one}" for one in half_done(before, workload.after[number], left)]
        agent.start()
        workload.finish(number)
    workload.restore()
    return died, problems


LB_MAPS = {
    "cilium_lb_services_v1",
    "cilium_lb_backends_v1",
    "cilium_lb_revnat_v1",
    "cilium_lb_source_range_v1",
    "cilium_lb_affinity_match_v1",
    "cilium_lb_bind_v1",
}


def test_the_judge_misses_no_row_of_a_service(node: Node, workload: Workload) -> None:
    """Each row that some kind of service needs, taken away by itself, changes the meaning."""
    number = next(n for n, step in enumerate(workload.steps) if step.name == "a host port comes")
    for step in workload.steps[: number + 1]:
        workload.begin(step)
        workload.wait(workload.steps.index(step))
    whole = dump(node.bpf_root)
    meant = meaning(whole)
    assert meant.broken == []
    missed = []
    for name in LB_MAPS:
        assert whole[name], f"no service has a row of {name}"
        for key in whole[name]:
            rows = {other: row for other, row in whole[name].items() if other != key}
            left = meaning({**whole, name: rows})
            whole_address = name == "cilium_lb_services_v1" and not abi.LbServiceKey.unpack(key).port
            if not (left.broken or left.differences(meant) or whole_address):
                missed.append((name, key.hex()))
    workload.restore()
    assert missed == []


@pytest.mark.parametrize("calls", [MAPS_AND_FILES, NETLINK], ids=["maps", "netlink"])
def test_a_kill_at_any_call_leaves_the_old_or_the_new(
    node: Node,
    probers: Probers,
    workload: Workload,
    calls: Sequence[str],
    is_long: bool,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """Dead at call k: maps that lead somewhere, and a restart that ends as the undisturbed run did."""
    every = calls_of(workload, calls, tmp_path / "all")
    chance = random.Random(SEED)
    some = every if is_long else chance.sample(every, SAMPLE)
    figures = Figures(f"F4-killed at {'map and file' if calls is MAPS_AND_FILES else 'netlink'} calls")
    figures.more |= {"of": len(every), "not reached": 0}
    wrong: dict[Step, list[str]] = {}
    with probers:
        for call in some:
            died, problems = killed_at(workload, call, tmp_path / f"{call[0]}-{call[1]}")
            if problems:
                wrong[call] = problems
            figures.injected += died
            figures.survived += died and not problems
            figures.more["not reached"] += not died
        probers.stop(figures)
    left = settled(node)
    figures.record(record_property)

    assert wrong == {}
    assert left.differences(workload.before) == []
    figures.assert_harmless()
