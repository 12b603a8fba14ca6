# SPDX-License-Identifier: Apache-2.0
"""
Whatever an object holds, the agent takes it or refuses it as a whole, says which field, and goes on.

Mutated objects of every kind go the way of the real ones: watch event, models, tables, plan, maps.  Of each
is asked that nothing escapes but a refusal, that no row of another object changes, that a refused one leaves
what was in force as it was, and that of a policy all that is written comes into force or nothing.
"""

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from ciliumd.daemon.policy_versions import RETIRE_AFTER
from ciliumd.kubernetes import kinds
from ciliumd.kubernetes.kinds import TABLES_OF, Kind
from ciliumd.model.policy import Policy
from ciliumd.resources import ResourceError, parser
from ciliumd.tables import Problem
from fuzz.mutate import Mutator, rooted
from fuzz.samples import SAMPLES
from property.churn.agent import Agent, begin, quiet_loop
from property.churn.cluster import Cluster, Document, Told
from property.test_interleavings import policies

pytestmark = pytest.mark.property

_parse = parser(node_selectors=True)

DEFAULT, LONG = 6_000, 1_000_000
SHARE = 10_000
ROUND = 40
"""Objects between two rounds."""
CLEAN = 2_000
"""Objects until all are taken away and the maps must be what they were."""
NAMES = 8
BUG = "internal error"
SECTIONS = ("ingress", "ingressDeny", "egress", "egressDeny")
KIND_OF = {kind.kind: kind for kind in TABLES_OF}


@dataclass
class Outcome:
    """What became of some objects."""

    objects: int = 0
    accepted: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, str] = (0.0, "")
    longest_message: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, other: "Outcome") -> None:
        """Both together."""
        self.objects += other.objects
        self.accepted += other.accepted
        self.refused += other.refused
        self.slowest = max(self.slowest, other.slowest)
        self.longest_message = max(self.longest_message, other.longest_message)
        self.failures += other.failures


class Lab:
    """An agent with a small cluster, and mutated objects beside it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seed: int, outcome: Outcome) -> None:
        self.outcome, self.seed = outcome, seed
        self.chance = random.Random(seed)
        self.cluster = Cluster(random.Random(7), policies(30))
        self.agent = Agent(loop)
        for one in self.cluster.begin():
            (self.agent.tell if isinstance(one, Told) else self.agent.wire)(one)
        begin(self.agent, self.cluster)
        self.agent.rest()
        self.before = self.agent.said()
        donors = [*SAMPLES, *self.cluster.objects.values()]
        self.samples = [dict(one) for one in donors if one["kind"] in KIND_OF]
        self.mutator = Mutator(self.chance, self.samples)
        self.version = self.cluster.version
        self.told: dict[tuple[Kind, str, str], str] = {}

    def one(self) -> None:
        """One mutated object."""
        sample = self.chance.choice(self.samples)
        kind = KIND_OF[sample["kind"]]
        mutant = self.mutator.mutate(sample)
        self._parsed_alone(mutant)
        namespace = self.chance.choice(("red", "blue")) if kind.namespaced else ""
        name = str(61000 + self.chance.randrange(NAMES)) if kind == kinds.CILIUM_IDENTITY else "mutant"
        if kind != kinds.CILIUM_IDENTITY:
            name += f"-{self.chance.randrange(NAMES)}"
        self.version += 1
        key = (kind, namespace, name)
        uid = self.told.get(key, "")
        if not uid or self.chance.random() < 0.2:
            uid = f"mutant-{self.version}"
        document = rooted(mutant, uid=uid, version=self.version, name=name, namespace=namespace)
        document["apiVersion"], document["kind"] = kind.api_version, kind.kind
        self._told(key, document, is_new=self.told.get(key) != uid)
        self.told[key] = uid
        self.outcome.objects += 1

    def _parsed_alone(self, mutant: Document) -> None:
        """As a manifest, where nobody has looked at it before."""
        try:
            _parse(mutant)
        except ResourceError as error:
            self.outcome.longest_message = max(self.outcome.longest_message, len(str(error)))
        except Exception as error:  # noqa: BLE001  what is looked for
            self._fail(f"{type(error).__name__} escaped: {error}"[:300], mutant)

    def _told(self, key: tuple[Kind, str, str], document: Document, *, is_new: bool) -> None:
        kind, namespace, name = key
        tables = self.agent.tables
        watched = {one.name: one.revision for one in (*tables.sources,)}
        before = self._rows(key)
        began = time.process_time()
        try:
            self.agent.tell(Told(kind, "MODIFIED", document))
        except Exception as error:  # noqa: BLE001  what is looked for
            self._fail(f"{type(error).__name__} escaped: {error}"[:300], document)
            return
        seconds = time.process_time() - began
        if seconds > self.outcome.slowest[0]:
            self.outcome.slowest = (seconds, f"{kind.kind} of {len(str(document))} characters")
        after = self._rows(key)
        for table in tables.sources:
            changed, _ = table.changes_since(watched[table.name])
            if strangers := [row for row in changed if not _is_of(kind, namespace, name, row)]:
                self._fail(f"changed {strangers} of {table.name}", document)
        where = (kind.kind, namespace, name)
        problem = tables.problems.get(where) if where in self.agent.source._problems else None
        if problem is None:
            self.outcome.accepted[kind.kind] += 1
            if TABLES_OF[kind] == "policies":
                self._is_whole(document, after)
            return
        self.outcome.refused[kind.kind] += 1
        self._refused(document, problem, expected={} if is_new else before, found=after)

    def _refused(self, document: Document, problem: Problem, *, expected: object, found: object) -> None:
        self.outcome.longest_message = max(self.outcome.longest_message, len(problem.message))
        if BUG in problem.message:
            self._fail("was not understood", document)
        if found != expected:
            self._fail(f"was refused ({problem.field} {problem.message}) and changed rows", document)

    def _rows(self, key: tuple[Kind, str, str]) -> Mapping[Any, Any]:
        """The rows of an object."""
        kind, namespace, name = key
        table = TABLES_OF[kind]
        if not table:
            return {}
        rows = getattr(self.agent.tables, table).view()
        if table != "policies":
            own = int(name) if kind == kinds.CILIUM_IDENTITY else (namespace, name) if namespace else name
            return {own: rows[own]} if own in rows else {}
        return {one: row for one, row in rows.items() if _is_of(kind, namespace, name, one)}

    def _is_whole(self, document: Document, rows: Mapping[Any, Policy]) -> None:
        """Each spec is a policy, each rule that is written a rule of it."""
        if document["kind"] == "NetworkPolicy":
            specs = [document["spec"]]
        else:
            specs = [one for one in (document.get("spec"), *(document.get("specs") or ())) if one is not None]
        written = [sum(len(one.get(section) or ()) for section in SECTIONS) for one in specs]
        found = [len(row.rules) for row in rows.values()]
        if document["kind"] == "NetworkPolicy":
            # Rules of a direction the policy says nothing about have no effect by definition.
            if len(found) != 1 or found[0] > written[0]:
                self._fail(f"{written} rules written, {found} in force", document)
        elif sorted(written) != sorted(found):
            self._fail(f"{written} rules written, {found} in force", document)

    def round(self) -> None:
        """The maps follow."""
        try:
            self.agent.settle()
        except Exception as error:  # noqa: BLE001  what is looked for
            self._fail(f"{type(error).__name__} in a round: {error}"[:300], {})
        for stage in self.agent.reconciler.status().stages:
            if stage.failing:
                self._fail(f"stage {stage.name}: {stage.last_error}", {})
        self.agent.now += RETIRE_AFTER

    def clean(self) -> None:
        """Every mutated object goes; the maps must be what they were."""
        for kind, namespace, name in self.told:
            self.version += 1
            document = rooted({}, uid="", version=self.version, name=name, namespace=namespace)
            self.agent.tell(Told(kind, "DELETED", document))
        self.told.clear()
        self.agent.rest()
        after = self.agent.said()
        for difference in (*after.differences(self.before), *after.broken, *after.unused):
            self._fail(f"stays: {difference}"[:300], {})
        if left := [key for key in self.agent.tables.problems if "mutant" in key[2]]:
            self._fail(f"problems stay: {left[:3]}", {})

    def _fail(self, text: str, document: Document) -> None:
        shown = json.dumps(document)
        self.outcome.failures.append(f"seed {self.seed}: {text}: {shown[:1000]}")


def _is_of(kind: Kind, namespace: str, name: str, row: Any) -> bool:
    """Whether the key of a row is that of an object."""
    if TABLES_OF[kind] == "policies":
        return bool(
            row[:2] == (kind.kind, namespace) and (row[2] == name or row[2].startswith(f"{name}/specs/"))
        )
    return bool(
        row == (int(name) if kind == kinds.CILIUM_IDENTITY else (namespace, name) if namespace else name)
    )


def mutated(seed: int, count: int) -> Outcome:
    """*count* mutated objects."""
    outcome = Outcome()
    with quiet_loop() as loop:
        lab = Lab(loop, seed, outcome)
        for number in range(1, count + 1):
            lab.one()
            if not number % ROUND:
                lab.round()
            if not number % CLEAN:
                lab.clean()
    return outcome


def test_mutated_objects_are_taken_or_refused_as_a_whole(
    is_long: bool, record_property: Callable[[str, object], None]
) -> None:
    """A5, in one process: no traceback, nothing half applied, nothing of anybody else touched."""
    count = LONG if is_long else DEFAULT
    outcome = Outcome()
    if is_long:
        with ProcessPoolExecutor(os.cpu_count() or 1) as processes:
            for share in processes.map(mutated, range(count // SHARE), [SHARE] * (count // SHARE)):
                outcome.add(share)
    else:
        outcome = mutated(10**6, count)
    seconds, slowest = outcome.slowest
    accepted, refused = outcome.accepted.total(), outcome.refused.total()
    record_property(
        "figure",
        f"A5: {outcome.objects} mutated objects, {accepted} taken, {refused} refused, "
        f"{len(outcome.failures)} failures; slowest {seconds * 1000:.1f} ms ({slowest}); "
        f"longest message {outcome.longest_message} characters",
    )
    data = {
        "case": "A5",
        "objects": outcome.objects,
        "accepted": dict(outcome.accepted),
        "refused": dict(outcome.refused),
        "failures": len(outcome.failures),
        "slowest_ms": round(seconds * 1000, 1),
    }
    record_property("data", json.dumps(data))
    assert outcome.failures[:10] == []
    assert outcome.accepted.keys() == outcome.refused.keys() | {"Namespace"} == KIND_OF.keys()
