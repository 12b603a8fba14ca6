# SPDX-License-Identifier: Apache-2.0
"""
Leader election by a Lease (coordination.k8s.io/v1): one operator works, the others wait.

Only what is seen of the lease counts, never another machine's clock: whoever sees the same record for
a whole lease duration, by the monotonic clock, may take it.  A leader that could not renew in time
stops leading before anybody else may begin.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from ciliumd.kubernetes.client import Api, Json
from ciliumd.kubernetes.errors import AlreadyExists, ApiError, Conflict, NotFound
from ciliumd.operator.objects import LEASE

NAME = "cilium-operator-resource-lock"

log = structlog.get_logger("leader")


@dataclass(frozen=True, slots=True)
class Terms:
    """Seconds: how long others wait, how long renewing may fail, and between attempts."""

    lease: float = 15.0
    renew_deadline: float = 10.0
    retry: float = 2.0


class LostLeadership(Exception):
    """The lease could not be renewed in time, or somebody else has it."""


class Lease:
    """Our side of the lease in *namespace*; *identity* must be ours alone."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        identity: str,
        terms: Terms,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self.identity = identity
        self._terms = terms
        self._clock = clock
        self._seen: tuple[object, object] = (None, None)
        self._seen_at = 0.0
        self._renewed_at = 0.0

    async def acquire(self) -> None:
        """Wait until we lead."""
        while not await self._attempt():  # noqa: ASYNC110  what is waited for happens elsewhere
            await asyncio.sleep(self._terms.retry)

    async def hold(self) -> None:
        """Renew until cancelled.  Raises :class:`LostLeadership`."""
        while True:
            await asyncio.sleep(self._terms.retry)
            left = self._renewed_at + self._terms.renew_deadline - self._clock()
            try:
                async with asyncio.timeout(max(left, 0)):
                    renewed = await self._attempt()
            except TimeoutError:
                renewed = False
            if not renewed and self._clock() - self._renewed_at >= self._terms.renew_deadline:
                raise LostLeadership(f"the lease was not renewed for {self._terms.renew_deadline:g} s")

    async def release(self) -> None:
        """Let the next one begin at once, if the lease is ours."""
        try:
            document = await self._api.get(LEASE, NAME, namespace=self._namespace)
            if document["spec"].get("holderIdentity") == self.identity:
                document["spec"]["holderIdentity"] = ""
                await self._api.replace(LEASE, document)
        except ApiError as error:
            log.warning("lease.not_released", error=str(error))

    async def _attempt(self) -> bool:
        """Take or renew the lease; whether it is ours now."""
        asked = self._clock()
        try:
            document = await self._api.get(LEASE, NAME, namespace=self._namespace)
        except NotFound:
            return await self._write(self._new(), asked, create=True)
        except ApiError as error:
            log.warning("lease.unreadable", error=str(error))
            return False
        spec = document.setdefault("spec", {})
        holder = spec.get("holderIdentity")
        if holder not in {"", None, self.identity} and not self._expired(spec):
            if self._renewed_at:
                raise LostLeadership(f"{holder} has the lease")
            return False
        if holder != self.identity:
            spec |= {"acquireTime": _now(), "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1}
        spec |= {
            "holderIdentity": self.identity,
            "renewTime": _now(),
            "leaseDurationSeconds": max(1, round(self._terms.lease)),
        }
        return await self._write(document, asked, create=False)

    def _expired(self, spec: Json) -> bool:
        """Whether the record has been the same for the duration it names."""
        record = (spec.get("holderIdentity"), spec.get("renewTime"))
        if record != self._seen:
            self._seen, self._seen_at = record, self._clock()
        duration = float(spec.get("leaseDurationSeconds") or self._terms.lease)
        return self._clock() - self._seen_at >= duration

    async def _write(self, document: Json, asked: float, *, create: bool) -> bool:
        write = self._api.create if create else self._api.replace
        try:
            await write(LEASE, document)
        except (AlreadyExists, Conflict):
            return False  # somebody was faster
        except ApiError as error:
            log.warning("lease.not_written", error=str(error))
            return False
        # Counted from before the request: the others may see the answer's time, never a later one.
        self._renewed_at = asked
        return True

    def _new(self) -> Json:
        return {
            "apiVersion": LEASE.api_version,
            "kind": "Lease",
            "metadata": {"name": NAME, "namespace": self._namespace},
            "spec": {
                "holderIdentity": self.identity,
                "acquireTime": _now(),
                "renewTime": _now(),
                "leaseDurationSeconds": max(1, round(self._terms.lease)),
                "leaseTransitions": 0,
            },
        }


def _now() -> str:
    """For people to read (MicroTime); nobody decides by it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
