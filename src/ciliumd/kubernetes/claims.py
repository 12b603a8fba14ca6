# SPDX-License-Identifier: Apache-2.0
"""
Numbers that the cluster has are taken up such that nobody deletes them meanwhile.

Whoever deletes (the operator) first condemns the object, then reads who claims it, and deletes only what is
still as it was condemned.  Whoever takes a number up first claims it, in its CiliumNode, and then reads the
object: if that is there and not condemned, whoever condemns it later will read the claim.  A number that is
condemned is left alone, and the labels get another one.  No clock is involved: see docs/decisions/0011.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import structlog

from ciliumd.kubernetes.client import Api
from ciliumd.kubernetes.errors import NotFound
from ciliumd.kubernetes.kinds import CILIUM_IDENTITY
from ciliumd.kubernetes.publisher import PERIOD, Publisher
from ciliumd.model.identity import NumericIdentity
from ciliumd.model.labels import Labels
from ciliumd.tables import Tables

CLAIMS: Final = "ciliumd.io/identities"
"""Annotation of a CiliumNode: the numbers its agent uses or is about to use."""
CONDEMNED: Final = "ciliumd.io/condemned"
"""Label of a CiliumIdentity that the operator is about to delete."""

# Seconds until what was not there, or not claimed, is looked at again.
RETRY: Final = 1.0
# Seconds until a condemned number may be asked for again: somebody else may have saved it.
_CONDEMNED_SECONDS: Final = 60.0

Claimed = Mapping[NumericIdentity, int]
"""Numbers that this node has claimed for sure; one that was not for a while has another value."""

log = structlog.get_logger("k8s-identity")


def claims_text(numbers: Iterable[NumericIdentity]) -> str:
    """*numbers* as the annotation has them."""
    return " ".join(map(str, sorted(numbers)))


def claims_of(cilium_node: Mapping[str, Any]) -> frozenset[NumericIdentity]:
    """The numbers a CiliumNode claims."""
    text = (cilium_node["metadata"].get("annotations") or {}).get(CLAIMS, "")
    return frozenset(int(word) for word in text.split() if word.isascii() and word.isdigit())


def security_labels(labels: Labels) -> dict[str, str]:
    """``security-labels`` of the CiliumIdentity of *labels*."""
    return {f"{label.source}:{label.key}": label.value for label in sorted(labels)}


class IdentityClaims(Publisher):
    """
    Writes numbers into ``tables.identities``, from where they are used.

    *wanted* are label sets and the numbers they would like to use, *claimed* tells which numbers are
    claimed.  *condemned_changed* is called when :meth:`condemned` has more.
    """

    def __init__(
        self,
        api: Api,
        tables: Tables,
        *,
        wanted: Callable[[], Mapping[Labels, NumericIdentity]],
        claimed: Callable[[], Claimed],
        condemned_changed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__("CiliumIdentity claims", pause=0.0)
        self._api = api
        self._tables = tables
        self._wanted = wanted
        self._claimed = claimed
        self._condemned_changed = condemned_changed
        self._clock = clock
        self._condemned: dict[NumericIdentity, float] = {}

    def condemned(self) -> frozenset[NumericIdentity]:
        """Numbers that nobody may begin to use."""
        now = self._clock()
        self._condemned = {number: until for number, until in self._condemned.items() if now < until}
        return frozenset(self._condemned)

    async def work(self) -> float:
        """Take up what is wanted, claimed and there."""
        for labels, number in list(self._wanted().items()):
            claim = self._claimed().get(number)
            if claim is None:
                continue
            found = await self._found(number)
            if self._wanted().get(labels) != number or self._claimed().get(number) != claim:
                continue  # the claim may have been away while the object was read
            if found is None or found.get("security-labels") != security_labels(labels):
                continue  # the watch will tell
            if CONDEMNED in (found["metadata"].get("labels") or {}):
                log.info("identity.condemned", identity=number)
                self._condemned[number] = self._clock() + _CONDEMNED_SECONDS
                self._condemned_changed()
            else:
                self._tables.identities.set(labels, number)
        self.succeeded()
        return RETRY if self._wanted() else PERIOD

    async def _found(self, number: NumericIdentity) -> Mapping[str, Any] | None:
        try:
            return await self._api.get(CILIUM_IDENTITY, str(number))
        except NotFound:
            return None
