# SPDX-License-Identifier: Apache-2.0
"""
Numbers for label sets nobody has numbered yet: a CiliumIdentity each, under a free number.

The API server decides: a name is given once.  The new number is used when the watch shows the object and it
is claimed, as on every other node (see ``claims``); two nodes that met the same labels at the same moment
see both objects in the same order.  What nobody uses any more is the operator's to delete.
"""

import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import structlog

from ciliumd.kubernetes.claims import CONDEMNED, security_labels
from ciliumd.kubernetes.client import Api, Json
from ciliumd.kubernetes.errors import AlreadyExists, ApiError, NotFound
from ciliumd.kubernetes.kinds import CILIUM_IDENTITY
from ciliumd.kubernetes.publisher import PERIOD, Publisher
from ciliumd.model.identity import CLUSTER_MAX, CLUSTER_MIN, NumericIdentity
from ciliumd.model.labels import K8S, Labels, labels_text
from ciliumd.resources.fields import label_key, label_value
from ciliumd.tables import Tables

# Seconds the watch is given to show an object that was created.
ECHO: Final = 10.0
_TRIES: Final = 16

log = structlog.get_logger("k8s-identity")


class NumbersTaken(ApiError):
    """Others were faster, time and again: the watch is late."""

    def __init__(self) -> None:
        super().__init__("create", CILIUM_IDENTITY.plural, 0, f"{_TRIES} numbers in a row were taken")


class NoNumberLeft(ApiError):
    """Every number is taken: the operator has to collect those without users."""

    def __init__(self) -> None:
        message = f"every number between {CLUSTER_MIN} and {CLUSTER_MAX} is taken"
        super().__init__("create", CILIUM_IDENTITY.plural, 0, message)


def document(number: NumericIdentity, labels: Labels) -> Json:
    """The CiliumIdentity that gives *labels* the *number*; Kubernetes labels can be selected by as well."""
    return {
        "apiVersion": CILIUM_IDENTITY.api_version,
        "kind": CILIUM_IDENTITY.kind,
        "metadata": {
            "name": str(number),
            "labels": {
                label.key: label.value
                for label in sorted(labels)
                if label.source == K8S and _allowed(label.key, label.value)
            },
        },
        "security-labels": security_labels(labels),
    }


def _allowed(key: str, value: str) -> bool:
    """Whether the object may have this label: a long key may not be one any more with our prefix."""
    if key == CONDEMNED:
        return False  # that is not for pods to say
    try:
        label_key(key)
        label_value(value)
    except ValueError:
        return False
    return True


def _nobody_asks() -> None:
    """Until somebody shuts whoever has no number."""


class IdentityAllocator(Publisher):
    """
    Creates what *unallocated* asks for: label sets, each with the number to prefer, or None.

    Nothing before the cluster's identities are known: most label sets have a number already.  *refused* are
    those that no number was left for; *refused_changed* is called when these are others.
    """

    def __init__(
        self,
        api: Api,
        tables: Tables,
        *,
        unallocated: Callable[[], Mapping[Labels, NumericIdentity | None]],
        chance: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__("CiliumIdentity", pause=0.02)
        self._api = api
        self._tables = tables
        self._unallocated = unallocated
        self._chance = chance or random.Random()  # noqa: S311  spreads nodes over the range, guards nothing
        self._clock = clock
        self._asked: dict[Labels, tuple[float, NumericIdentity]] = {}
        self._taken: set[NumericIdentity] = set()
        self.refused: frozenset[Labels] = frozenset()
        self.refused_changed: Callable[[], None] = _nobody_asks
        tables.cluster_identities.subscribe(self._identities_changed)

    async def work(self) -> float:
        """Create what is missing."""
        if not self._tables.cluster_identities.initialized:
            return PERIOD
        now, wanted = self._clock(), self._unallocated()
        self._asked = {labels: asked for labels, asked in self._asked.items() if now - asked[0] < ECHO}
        self._taken -= self._tables.cluster_identities.view().keys()
        missing = [labels for labels in sorted(wanted, key=labels_text) if labels not in self._asked]
        for labels in missing:
            try:
                number = await self._create(labels, prefer=wanted[labels])
            except NoNumberLeft:
                self._refuse(labels for labels in missing if labels not in self._asked)
                raise
            if self._tables.cluster_identities.get(number) != labels:  # the watch may have been faster
                self._asked[labels] = (self._clock(), number)
        self._refuse(())
        self.succeeded()
        return ECHO if wanted else PERIOD

    def _refuse(self, labels: Iterable[Labels]) -> None:
        refused = frozenset(labels)
        if refused != self.refused:
            self.refused = refused
            self.refused_changed()

    async def _create(self, labels: Labels, *, prefer: NumericIdentity | None) -> NumericIdentity:
        for _ in range(_TRIES):
            number = self._free(prefer)
            prefer = None
            try:
                await self._api.create(CILIUM_IDENTITY, document(number, labels))
            except AlreadyExists:
                if await self._is(number, labels):
                    return number  # an earlier attempt of ours arrived after all
                self._taken.add(number)
                continue
            log.info("identity.created", identity=number, labels=" ".join(labels_text(labels)))
            return number
        raise NumbersTaken

    async def _is(self, number: NumericIdentity, labels: Labels) -> bool:
        try:
            existing = await self._api.get(CILIUM_IDENTITY, str(number))
        except NotFound:
            return False
        return bool(existing.get("security-labels") == security_labels(labels))

    def _free(self, prefer: NumericIdentity | None) -> NumericIdentity:
        known = self._tables.cluster_identities.view()
        if prefer is not None and prefer not in known and prefer not in self._taken:
            return prefer
        for _ in range(_TRIES):
            number = self._chance.randint(CLUSTER_MIN, CLUSTER_MAX)
            if number not in known and number not in self._taken:
                return number
        free = [
            number
            for number in range(CLUSTER_MIN, CLUSTER_MAX + 1)
            if number not in known and number not in self._taken
        ]
        if not free:
            self._taken.clear()
            raise NoNumberLeft
        return self._chance.choice(free)

    def _identities_changed(self) -> None:
        # What was shown and is missing again was deleted by somebody: no reason to wait for the watch.
        known = self._tables.cluster_identities
        self._asked = {
            labels: asked for labels, asked in self._asked.items() if known.get(asked[1]) != labels
        }
        if self._unallocated():
            self.wake()
