# SPDX-License-Identifier: Apache-2.0
"""
What is to be said about policies: the condition Valid in their status, and an event on bad ones.

The judgement is that of ``ciliumd.resources``, the same that agents enforce by.  Kubernetes has no status
for NetworkPolicy: there only the event tells.  A policy that names what does not exist is valid, since it may
come to exist; until then its condition and an event say that nobody is meant.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from ciliumd.desired.policy.references import missing, objects_named_by
from ciliumd.kubernetes.client import Api, Json
from ciliumd.kubernetes.kinds import CILIUM_CIDR_GROUP, NETWORK_POLICY, SERVICE, Kind
from ciliumd.model.policy import GroupReference, NamedReference, Policy
from ciliumd.operator.events import warn
from ciliumd.operator.objects import Key, change, condition, key_of, with_condition
from ciliumd.operator.store import Store
from ciliumd.resources import InvalidResource, Parse, parse

VALID: Final = "Valid"
SUCCEEDED: Final = "Policy validation succeeded"
REASON_VALID: Final = "PolicyValid"
REASON_INVALID: Final = "PolicyInvalid"
REASON_MISSING: Final = "ReferenceMissing"
REFERRED: Final = (CILIUM_CIDR_GROUP, SERVICE)
"""Kinds of objects that policies name."""

log = structlog.get_logger("policies")


def judge(policy: Json, *, parse: Parse = parse) -> tuple[str, list[Policy]]:
    """What is wrong with *policy*, empty when it can be enforced as written; and what it then means."""
    try:
        # Status is ours, and what is in it must not decide.
        rows = parse({key: value for key, value in policy.items() if key != "status"}).rows()
    except InvalidResource as error:
        return _text(error.problems), []
    return "", [row for _, _, row in rows]


class Policies:
    """Keeps what policies say of themselves right."""

    def __init__(self, api: Api, store: Store, *, parse: Parse = parse) -> None:
        self._api = api
        self._parse = parse
        self._store = store
        self._naming: dict[tuple[Kind, Key], frozenset[NamedReference]] = {}

    def naming(self, kind: Kind, name: Key) -> Iterator[tuple[Kind, Key]]:
        """The policies that name an object."""
        for key, references in self._naming.items():
            if any(_names(one, kind, name) for one in references):
                yield key

    async def reconcile(self, key: tuple[Kind, Key]) -> None:
        """Look at one policy."""
        kind, name = key
        policy = self._store.get(kind, name)
        self._naming.pop(key, None)
        if policy is None:
            return
        problem, rows = judge(policy, parse=self._parse)
        references = frozenset(one for row in rows for one in objects_named_by(row))
        if references:
            self._naming[key] = references
        absent = _text([found for row in rows for found in missing(row, self._exists)])
        if kind != NETWORK_POLICY:
            await self._state(kind, policy, problem, absent)
        if problem or absent:
            await warn(self._api, policy, REASON_INVALID if problem else REASON_MISSING, problem or absent)

    def _exists(self, reference: NamedReference) -> bool:
        if isinstance(reference, GroupReference):
            return self._store.get(CILIUM_CIDR_GROUP, ("", reference.name)) is not None
        if reference.namespace:
            return self._store.get(SERVICE, (reference.namespace, reference.name)) is not None
        return any(name == reference.name for _, name in self._store.rows(SERVICE))

    async def _state(self, kind: Kind, policy: Json, problem: str, absent: str) -> None:
        wanted = _condition(policy, problem, absent)
        if condition(policy, VALID) == wanted:
            return
        changes = with_condition(policy, wanted)
        self._store.put(kind, await change(self._api, kind, policy, changes, subresource="status"))
        log.info("policy.judged", policy="/".join(filter(None, key_of(policy))), valid=not problem)


def _text(problems: Iterable[tuple[str, str]]) -> str:
    return "; ".join(f"{field} {message}".strip() for field, message in problems)


def _names(reference: NamedReference, kind: Kind, name: Key) -> bool:
    if isinstance(reference, GroupReference):
        return kind == CILIUM_CIDR_GROUP and reference.name == name[1]
    return kind == SERVICE and reference.name == name[1] and reference.namespace in ("", name[0])


def _condition(policy: Json, problem: str, absent: str) -> dict[str, Any]:
    """The condition *policy* is to have; its time changes with its status only."""
    status = "False" if problem else "True"
    before = condition(policy, VALID)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "type": VALID,
        "status": status,
        "reason": REASON_INVALID if problem else REASON_MISSING if absent else REASON_VALID,
        "message": problem or absent or SUCCEEDED,
        "lastTransitionTime": before.get("lastTransitionTime") if before.get("status") == status else now,
    }
