# SPDX-License-Identifier: Apache-2.0
"""
What may run out on this node, how much of it is used, and who has to do without.

Warned of long before; what happens then is decided where it happens: rows that do not fit in
``desired.policy.overflow``, numbers in ``plan``, rows of services in ``unserved``.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

import structlog

from ciliumd.daemon.plan import NodePlan
from ciliumd.desired.policy.round import room
from ciliumd.metrics.collectors import MapUsage
from ciliumd.model.identity import CLUSTER_MAX, CLUSTER_MIN, LOCAL_MAX, LOCAL_MIN, NODE_MAX, NODE_MIN
from ciliumd.tables.schema import ObjectKey, Problem, Tables

WARN_AT: Final = 0.9
"""Share of something from which on it is said to be nearly full."""
CALM_BELOW: Final = 0.8
"""And below which it no longer is: not every pod that comes and goes is news."""

CLUSTER, CIDR, NODE = "cluster", "cidr", "node"
_SIZES: Final = {
    CLUSTER: CLUSTER_MAX - CLUSTER_MIN + 1,
    CIDR: LOCAL_MAX - LOCAL_MIN + 1,
    NODE: NODE_MAX - NODE_MIN + 1,
}
_LACKING: Final = frozenset({"Endpoint", "CIDR"})
_SHOWN: Final = 3

log = structlog.get_logger("limits")


class Use(NamedTuple):
    """How much of something is used; *name* is a map, or the kind of identities a range is of."""

    name: str
    used: int
    most: int

    @property
    def share(self) -> float:
        """0 to 1; what would not fit is as if it were full."""
        return min(1.0, self.used / self.most) if self.most else 0.0

    def __str__(self) -> str:
        """For people: what, how many, of how many."""
        return f"{self.name} {self.used}/{self.most}"


def identities(tables: Tables) -> list[Use]:
    """The ranges that numbers of identities come from, of whoever gives them."""
    cluster = {*tables.cluster_identities.view(), *tables.identities.values()}
    used = {CLUSTER: len(cluster), CIDR: len(tables.prefixes), NODE: len(tables.node_identities)}
    return [Use(name, count, _SIZES[name]) for name, count in used.items()]


def policy_maps(plan: NodePlan) -> list[MapUsage]:
    """The maps of the policy version that has, or would need, most rows of each."""
    return [MapUsage(name, min(rows, room(name)), room(name)) for name, rows in plan.fullest().items()]


def unrealized(problems: Mapping[ObjectKey, Problem]) -> dict[str, int]:
    """Endpoints that are not under the policies as written, by what does not fit: policy or identity."""
    counts = dict.fromkeys(("identity", "policy"), 0)
    for problem in problems.values():
        counts[problem.field] += 1
    return counts


class Limits:
    """
    Looks how full everything is, and tells once of each that is nearly full, and once that it no longer is.

    *usage* is how full maps were when they were last counted.
    """

    def __init__(self, tables: Tables, usage: Callable[[], Iterable[MapUsage]]) -> None:
        self.near: tuple[Use, ...] = ()
        self._tables = tables
        self._usage = usage

    def look(self) -> None:
        """Compare what is used with what there is."""
        maps = [Use(one.map_name, one.entries, one.max_entries) for one in self._usage()]
        ranges = [one._replace(name=f"{one.name} identities") for one in identities(self._tables)]
        told = {one.name for one in self.near}
        near = [one for one in (*maps, *ranges) if one.share >= (CALM_BELOW if one.name in told else WARN_AT)]
        for one in near:
            if one.name not in told:
                log.warning("limits.nearly_full", what=one.name, used=one.used, of=one.most)
        for name in sorted(told - {one.name for one in near}):
            log.info("limits.relieved", what=name)
        self.near = tuple(near)

    def model(self) -> dict[str, str]:
        """The part of the status: a warning while somebody has to do without."""
        problems = {key: one for key, one in self._tables.problems.items() if key[0] in _LACKING}
        said = [f"{_name(key)}: {problem.message}" for key, problem in sorted(problems.items())]
        if len(said) > _SHOWN:
            said[_SHOWN:] = [f"{len(said) - _SHOWN} more"]
        if self.near:
            said.append(f"nearly full: {', '.join(map(str, self.near))}")
        return {"state": "Warning" if problems else "Ok", "msg": "; ".join(said)}


def _name(key: ObjectKey) -> str:
    kind, namespace, name = key
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"
