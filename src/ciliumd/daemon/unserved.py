# SPDX-License-Identifier: Apache-2.0
"""
Services that are not served as they are written because rows of theirs cannot be: a map is full.

Frontends wait for what they depend on (``stages``), so each of those named here is not served yet, or goes on
as it was.  Pure but for :class:`Unserved`, which looks after each round.
"""

from collections.abc import Callable, Iterable, Mapping

from ciliumd import abi
from ciliumd.bpf.errors import NoSpace
from ciliumd.daemon import stages
from ciliumd.daemon.plan import NodePlan
from ciliumd.daemon.service_plan import object_of
from ciliumd.desired.bindports import bind_key
from ciliumd.desired.services import FIELDS, ServedFrontend
from ciliumd.model.net import addr16
from ciliumd.model.service import PROTOCOL_NUMBERS, BackendKey, FrontendKey, ServiceKind
from ciliumd.reconcile.loop import Reconciler
from ciliumd.reconcile.progress import Failure
from ciliumd.tables.schema import ObjectKey, Problem

PART = "rows"
"""What the plan knows these problems by."""

OF_SERVICES = (
    *(stages.BACKENDS, stages.REVNAT, stages.AFFINITY_MATCH, stages.SOURCES, stages.BIND),
    *(stages.SERVICE_SLOTS, stages.SERVICES),
)
# What fails once may be the kernel's memory at that moment; it is tried again at once.
IN_VAIN = 2
_MOST_TOLD = 4

Failing = Mapping[str, Mapping[bytes, Failure]]
"""Rows of a stage that could not be written."""


class Unserved:
    """Looks after each round of *reconciler* and tells the *plan*; *changed* is called when that was news."""

    def __init__(
        self,
        reconciler: Reconciler,
        plan: NodePlan,
        *,
        service_ids: Callable[[], Mapping[FrontendKey, int]],
        backend_ids: Callable[[], Mapping[BackendKey, int]],
    ) -> None:
        self.problems: Mapping[ObjectKey, Problem] = {}
        self.changed: Callable[[], None] = _nobody
        self._reconciler = reconciler
        self._plan = plan
        self._service_ids = service_ids
        self._backend_ids = backend_ids

    def look(self) -> None:
        """See which rows could not be written."""
        failing = {name: rows for name in OF_SERVICES if (rows := self._in_vain(name))}
        found: dict[ObjectKey, Problem] = {}
        if failing:
            found = problems(failing, self._plan.services.served, self._service_ids(), self._backend_ids())
        if found != self.problems:
            self.problems = found
            self._plan.report(PART, found)
            self.changed()

    def _in_vain(self, name: str) -> dict[bytes, Failure]:
        return {
            key: one
            for key, one in self._reconciler.failures(name).items()
            if one.value is not None and one.attempts >= IN_VAIN
        }


def _nobody() -> None:
    """Until somebody tells others."""


def problems(
    failing: Failing,
    served: Iterable[ServedFrontend],
    service_ids: Mapping[FrontendKey, int],
    backend_ids: Mapping[BackendKey, int],
) -> dict[ObjectKey, Problem]:
    """What is told of each service: its frontends that wait for rows which could not be written, by map."""
    index = _Index(failing)
    waiting: dict[ObjectKey, dict[str, list[ServedFrontend]]] = {}
    for one in served:
        number = service_ids.get(one.frontend.key)
        ids = [backend_ids[backend.key] for backend in one.backends if backend.key in backend_ids]
        for room in {_room(name, error) for name, error in index.of(one, number, ids).items()}:
            waiting.setdefault(object_of(one.service.key), {}).setdefault(room, []).append(one)
    return {key: _told(by_room) for key, by_room in waiting.items()}


def _room(name: str, error: Exception) -> str:
    where = name.removesuffix(".slots")  # of the same map
    return f"room in {where}" if isinstance(error, NoSpace) else f"{where}: {error}"


def _told(waiting: Mapping[str, list[ServedFrontend]]) -> Problem:
    """One text for all frontends of a service; a few of them stand for many."""
    texts = []
    for room, frontends in sorted(waiting.items()):
        shown = [str(one.frontend.key) for one in frontends[:_MOST_TOLD]]
        if len(frontends) > _MOST_TOLD:
            shown.append(f"{len(frontends) - _MOST_TOLD} more")
        texts.append(f"{', '.join(shown)} wait{'s' * (len(frontends) == 1)} for {room}")
    first = next(iter(waiting.values()))[0].frontend
    return Problem(FIELDS[first.kind], "; ".join(texts))


class _Index:
    """What failed, by what a frontend knows of itself."""

    def __init__(self, failing: Failing) -> None:
        self._of_service: dict[int, dict[str, Exception]] = {}
        self._of_address: dict[bytes, dict[str, Exception]] = {}
        self._of_port: dict[bytes, Exception] = {}
        self._of_backend: dict[int, Exception] = {}
        for name, rows in failing.items():
            for key, failure in rows.items():
                self._note(name, key, failure)

    def _note(self, name: str, key: bytes, failure: Failure) -> None:
        match name:
            case stages.BIND:
                self._of_port[key] = failure.error
            case stages.BACKENDS:
                self._of_backend[int.from_bytes(key, "little")] = failure.error
            case stages.SERVICES if not abi.LbServiceKey.unpack(key).port:
                self._of_address.setdefault(abi.LbServiceKey.unpack(key).addr, {})[name] = failure.error
            case _:
                number = _service_of(name, key, failure.value or b"")
                self._of_service.setdefault(number, {})[name] = failure.error

    def of(self, one: ServedFrontend, number: int | None, backends: Iterable[int]) -> dict[str, Exception]:
        """What failed of a frontend, by stage."""
        found = dict(self._of_service.get(number or 0, {}))
        if one.frontend.kind is ServiceKind.CLUSTER_IP:
            found |= self._of_address.get(addr16(one.frontend.addr), {})
        if one.frontend.kind is ServiceKind.NODE_PORT and self._of_port:
            key = bind_key(one.frontend.port, PROTOCOL_NUMBERS[one.frontend.protocol])
            if key in self._of_port:
                found[stages.BIND] = self._of_port[key]
        for backend in backends if self._of_backend else ():
            if backend in self._of_backend:
                found[stages.BACKENDS] = self._of_backend[backend]
        return found


def _service_of(name: str, key: bytes, value: bytes) -> int:
    """The service id of a row."""
    if name == stages.REVNAT:
        return int.from_bytes(key, "little")
    if name == stages.SOURCES:
        return abi.LbSourceKey.unpack(key).rev_nat
    if name == stages.AFFINITY_MATCH:
        return abi.LbAffinityMatch.unpack(key).rev_nat
    return abi.LbService.unpack(value).rev_nat
