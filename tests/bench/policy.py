# SPDX-License-Identifier: Apache-2.0
"""What ``bench policy`` measures: verdicts beside nftables, what changes touch, and how soon they count."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import changes, cluster, enforcement, newflows, resident, verdicts
from bench.result import Section
from datapath.node import private_node


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of everything; the crowd has as many pods and policies as the node of changes in memory."""

    verdict_rounds: int
    pairs: int
    turns: int
    enforced: cluster.Effort


ENDPOINTS, POLICIES = 100, 1000
# Client and server are endpoints, too, and the policy of the flow beside the probes is one of them.
PODS, OTHERS = ENDPOINTS - 2, POLICIES - 1
TOOLS: Final = (*cluster.TOOLS, "nft", "iptables-legacy-restore", "taskset")
FULL: Final = Effort(25, 200, 20, cluster.Effort(PODS, OTHERS, 500, 60.0))
QUICK: Final = Effort(10, 60, 5, cluster.Effort(PODS, OTHERS, 50, 20.0))
Part = Callable[[Effort], Iterator[Section]]


def judged(effort: Effort) -> Iterator[Section]:
    """P7."""
    with private_node(), tempfile.TemporaryDirectory() as directory:
        yield verdicts.measure(Path(directory), rounds=effort.verdict_rounds)
    yield newflows.measure(pairs=effort.pairs)


def changed(effort: Effort) -> Iterator[Section]:
    """What of P8 is counted."""
    yield changes.measure(endpoints=ENDPOINTS, policies=POLICIES, turns=effort.turns)


def enforced(effort: Effort) -> Iterator[Section]:
    """P8."""
    amount = effort.enforced
    with cluster.installed() as (ciliumd, section):
        yield section
        one = ciliumd.cluster
        agent = resident.containers(ciliumd)[f"agent, {one.nodes[0].name}"]
        with enforcement.crowd(one, pods=amount.pods, policies=amount.policies) as api:
            yield enforcement.measure(
                one, api, agent=agent, changes=amount.changes, crowd_size=amount.crowd_size
            )


PARTS: Final[dict[str, Part]] = {"verdicts": judged, "changes": changed, "enforcement": enforced}
