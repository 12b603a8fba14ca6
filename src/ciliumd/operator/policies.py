# SPDX-License-Identifier: Apache-2.0
"""
What is to be said about policies: the condition Valid in their status, and an event on bad ones.

The judgement is that of ``ciliumd.resources``, the same that agents enforce by.  Kubernetes has no status
for NetworkPolicy: there only the event tells.
"""

from datetime import UTC, datetime
from typing import Any, Final

import structlog

from ciliumd.kubernetes.client import Api, Json
from ciliumd.kubernetes.kinds import NETWORK_POLICY, Kind
from ciliumd.operator.events import warn
from ciliumd.operator.objects import Key, change, condition, key_of, with_condition
from ciliumd.operator.store import Store
from ciliumd.resources import InvalidResource, parse

VALID: Final = "Valid"
SUCCEEDED: Final = "Policy validation succeeded"
REASON_VALID: Final = "PolicyValid"
REASON_INVALID: Final = "PolicyInvalid"

log = structlog.get_logger("policies")


def judge(policy: Json) -> str:
    """What is wrong with *policy*; empty when it can be enforced as written."""
    try:
        # Status is ours, and what is in it must not decide.
        parse({key: value for key, value in policy.items() if key != "status"})
    except InvalidResource as error:
        return "; ".join(f"{field} {message}".strip() for field, message in error.problems)
    return ""


class Policies:
    """Keeps what policies say of themselves right."""

    def __init__(self, api: Api, store: Store) -> None:
        self._api = api
        self._store = store

    async def reconcile(self, key: tuple[Kind, Key]) -> None:
        """Look at one policy."""
        kind, name = key
        policy = self._store.get(kind, name)
        if policy is None:
            return
        problem = judge(policy)
        if kind != NETWORK_POLICY:
            await self._state(kind, policy, problem)
        if problem:
            await warn(self._api, policy, REASON_INVALID, problem)

    async def _state(self, kind: Kind, policy: Json, problem: str) -> None:
        wanted = _condition(policy, problem)
        if condition(policy, VALID) == wanted:
            return
        changes = with_condition(policy, wanted)
        self._store.put(kind, await change(self._api, kind, policy, changes, subresource="status"))
        log.info("policy.judged", policy="/".join(filter(None, key_of(policy))), valid=not problem)


def _condition(policy: Json, problem: str) -> dict[str, Any]:
    """The condition *policy* is to have; its time changes with its status only."""
    status = "False" if problem else "True"
    before = condition(policy, VALID)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "type": VALID,
        "status": status,
        "reason": REASON_INVALID if problem else REASON_VALID,
        "message": problem or SUCCEEDED,
        "lastTransitionTime": before.get("lastTransitionTime") if before.get("status") == status else now,
    }
