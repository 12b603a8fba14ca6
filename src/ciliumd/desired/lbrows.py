# SPDX-License-Identifier: Apache-2.0
"""
Load-balancer rows: served frontends as the datapath reads them, and back.

Slot 0 of a frontend carries the number of its backends, slots 1..n lead to them.  Backends that are
shutting down keep their rows as long as they are listed, so that connections they have go on.  A frontend
without backends keeps slot 0 with a count of zero: the datapath then refuses at once instead of sending
packets into the void.  Only where the traffic policy keeps a frontend from backends of other nodes it says
nothing: whoever tries again may be sent to one of those.

Of the three maps, backends and revNAT are to be written before services, and slots before slot 0.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from struct import Struct
from typing import Any

from ciliumd import abi
from ciliumd.desired.services import (
    SERVICE_ID_MAX,
    ServedFrontend,
    ServiceProblem,
    has_two_scopes,
    policy_of,
)
from ciliumd.model.net import addr16, addr_from16, prefix_bits16
from ciliumd.model.service import (
    EXTERNAL,
    PROTOCOL_NUMBERS,
    Backend,
    BackendKey,
    BackendState,
    FrontendKey,
    ServiceKind,
)

_SLOT_MAX = 65535
_SLOT, _PORT = abi.place_of(abi.LbServiceKey, "slot"), abi.place_of(abi.LbServiceKey, "port")
_FRONTEND = _NO_PORT = bytes(2)
_U32 = Struct("<I")
_MATCHES = _LISTED = _U32.pack(1)
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOL_NUMBERS.items()}
_FLAGS = {
    ServiceKind.CLUSTER_IP: abi.LbServiceFlags.LB_F_CLUSTER_IP,
    ServiceKind.NODE_PORT: abi.LbServiceFlags.LB_F_NODE_PORT,
    ServiceKind.EXTERNAL_IP: abi.LbServiceFlags.LB_F_EXTERNAL_IP,
    ServiceKind.LOAD_BALANCER: abi.LbServiceFlags.LB_F_LOAD_BALANCER,
    ServiceKind.HOST_PORT: abi.LbServiceFlags.LB_F_HOST_PORT,
}


_SOURCES = {
    False: abi.LbServiceFlags.LB_F_SOURCES_ALLOW,
    True: abi.LbServiceFlags.LB_F_SOURCES_DENY,
}


Fit = tuple[BackendKey, BackendState]
"""A backend, and how fit it is."""
SlotRow = Callable[[bytes], bytes | None]
"""The row of a slot by its packed key."""


def no_row(_: bytes) -> bytes | None:
    """Of maps that hold nothing yet."""
    return None


class DanglingRowError(ValueError):
    """A service's row leads to nothing."""


@dataclass(slots=True)
class LbRows:
    """
    Rows of ``cilium_lb_backends_v1``, ``cilium_lb_revnat_v1``, ``cilium_lb_affinity_match_v1`` (*matches*),
    ``cilium_lb_source_range_v1`` (*sources*) and ``cilium_lb_services_v1``.

    The last in two parts: *slots* lead to backends, *frontends* say how many slots there are, and are to be
    written after all of them.  *fit* are the backends that *backends* are the rows of, by id.
    """

    backends: dict[bytes, bytes] = field(default_factory=dict)
    revnat: dict[bytes, bytes] = field(default_factory=dict)
    matches: dict[bytes, bytes] = field(default_factory=dict)
    sources: dict[bytes, bytes] = field(default_factory=dict)
    slots: dict[bytes, bytes] = field(default_factory=dict)
    frontends: dict[bytes, bytes] = field(default_factory=dict)
    fit: dict[int, Fit] = field(default_factory=dict)
    problems: list[ServiceProblem] = field(default_factory=list)

    @property
    def services(self) -> dict[bytes, bytes]:
        """All rows of ``cilium_lb_services_v1``."""
        return {**self.slots, **self.frontends}


def lb_rows(
    served: Iterable[ServedFrontend],
    service_ids: Mapping[FrontendKey, int],
    backend_ids: Mapping[BackendKey, int],
    *,
    external_cluster_ip: bool = False,
    slot_row: SlotRow = no_row,
) -> LbRows:
    """
    Every load-balancer row of the *served* frontends.

    With *external_cluster_ip* cluster addresses are reached from outside, too.  A frontend without an id is
    left out and reported; so is a backend without one.  *slot_row* answers the row that a slot has by now:
    a backend stays in its slot, so that one that goes moves one other and not all behind it.
    """
    return with_backends(
        rows_but_backends(
            served, service_ids, backend_ids, external_cluster_ip=external_cluster_ip, slot_row=slot_row
        )
    )


def rows_but_backends(
    served: Iterable[ServedFrontend],
    service_ids: Mapping[FrontendKey, int],
    backend_ids: Mapping[BackendKey, int],
    *,
    external_cluster_ip: bool,
    slot_row: SlotRow,
) -> LbRows:
    """The same without the rows of backends: how fit one is depends on all frontends that have it."""
    rows = LbRows()
    for one in served:
        service_id = service_ids.get(one.frontend.key)
        if service_id is None:
            rows.problems.append(_problem(one, f"no service id is free, at most {SERVICE_ID_MAX} fit"))
            continue
        keys = [backend.key for backend in one.backends]
        numbers = [backend_ids.get(key) for key in keys]
        _note_fitness(rows.fit, one.backends, keys, numbers)
        if one.chosen != one.backends:
            numbers = [backend_ids.get(backend.key) for backend in one.chosen]
        chosen = [number for number in numbers if number is not None]
        if len(chosen) < len(one.chosen):
            rows.problems.append(_problem(one, f"{len(one.chosen) - len(chosen)} backends have no id"))
        if len(chosen) > _SLOT_MAX:
            rows.problems.append(_problem(one, f"has {len(chosen)} backends, at most {_SLOT_MAX} fit"))
            chosen = chosen[:_SLOT_MAX]
        flags = abi.LbServiceFlags.LB_F_OPEN if external_cluster_ip and _is_cluster_ip(one) else 0
        rows.sources.update(dict.fromkeys(_source_keys(one, service_id), _LISTED))
        slots, head = _service_rows(one, service_id, chosen, flags, slot_row)
        rows.slots.update(slots)
        rows.frontends[_service_key(one.frontend.key, 0)] = head
        if _is_cluster_ip(one):
            rows.frontends.update([_cluster_ip_row(one.frontend.key)])
        rows.revnat.update([_revnat_row(one.frontend.key, service_id)])
        if one.service.affinity_timeout:
            rows.matches.update((match_key(backend, service_id), _MATCHES) for backend in chosen)
    return rows


def with_backends(rows: LbRows) -> LbRows:
    """The *rows* of all frontends, completed by those of the backends."""
    rows.backends.update(backend_row(key, number, state) for number, (key, state) in sorted(rows.fit.items()))
    return rows


def _note_fitness(
    fit: dict[int, Fit],
    backends: Iterable[Backend],
    keys: Iterable[BackendKey],
    numbers: Iterable[int | None],
) -> None:
    """A backend is as fit as any frontend knows it to be."""
    for backend, key, number in zip(backends, keys, numbers, strict=True):
        if number is not None and (number not in fit or backend.state < fit[number][1]):
            fit[number] = (key, backend.state)


def backends_in_rows(
    key: FrontendKey, services: Mapping[bytes, bytes], backends: Mapping[bytes, bytes]
) -> tuple[BackendKey, ...] | None:
    """
    The backends of a frontend as the datapath finds them in packed rows, in slot order.

    None for a frontend the rows do not know, empty for one that is refused.  Raises DanglingRowError
    where the datapath would lose its way.
    """
    head = services.get(_service_key(key, 0))
    if head is None:
        return None
    found = []
    for slot in range(1, abi.LbService.unpack(head).target + 1):
        packed = services.get(_service_key(key, slot))
        if packed is None:
            raise DanglingRowError(f"{key} has no slot {slot}")
        backend_id = abi.LbService.unpack(packed).target
        row = backends.get(_U32.pack(backend_id))
        if row is None:
            raise DanglingRowError(f"{key} slot {slot}: no backend {backend_id}")
        backend = abi.LbBackend.unpack(row)
        protocol = _PROTOCOL_NAMES[backend.protocol]
        found.append(BackendKey(addr_from16(backend.addr), backend.port, protocol))
    return tuple(found)


def service_model(
    one: ServedFrontend, service_id: int, *, realized: Iterable[BackendKey] | None
) -> dict[str, Any]:
    """
    One frontend as ``service get`` shows it.

    *realized* are the backends found in the live maps (see :func:`backends_in_rows`), None when the maps
    do not know the frontend; then nothing is realized.
    """
    known = {backend.key: backend for backend in one.backends}
    status = {} if realized is None else {"realized": _spec_model(one, service_id, realized, known)}
    return {
        "spec": _spec_model(one, service_id, (backend.key for backend in one.chosen), known),
        "status": status,
    }


def _spec_model(
    one: ServedFrontend, service_id: int, backends: Iterable[BackendKey], known: Mapping[BackendKey, Backend]
) -> dict[str, Any]:
    return {
        "backend-addresses": [_backend_model(key, known.get(key)) for key in backends],
        "flags": {
            "extTrafficPolicy": one.service.external_policy.value,
            "intTrafficPolicy": one.service.internal_policy.value,
            "name": one.service.name,
            "namespace": one.service.namespace,
            "natPolicy": "None",
            "trafficPolicy": policy_of(one.service, one.frontend).value,
            "type": one.frontend.kind.value,
        },
        "frontend-address": {
            "ip": str(one.frontend.addr),
            "port": one.frontend.port,
            "protocol": one.frontend.protocol,
            "scope": "internal" if one.frontend.scope else "external",
        },
        "id": service_id,
    }


def _backend_model(key: BackendKey, known: Backend | None) -> dict[str, Any]:
    """``models.BackendAddress``; one that nobody lists any more has no node and serves no new client."""
    return {
        "ip": str(key.addr),
        "nodeName": (known.node if known else None) or "",
        "port": key.port,
        "protocol": key.protocol,
        "state": (known.state if known else BackendState.TERMINATING).name.lower(),
    }


def _problem(one: ServedFrontend, message: str) -> ServiceProblem:
    return ServiceProblem(
        one.service.key, one.frontend.key, f"{one.frontend.key}: {message}", one.frontend.kind
    )


def _is_cluster_ip(one: ServedFrontend) -> bool:
    return one.frontend.kind is ServiceKind.CLUSTER_IP


def is_slot(key: bytes) -> bool:
    """Whether a packed key is that of a slot that leads to a backend."""
    return key[_SLOT] != _FRONTEND


def is_whole_address(key: bytes) -> bool:
    """Whether a packed key is that of a service's whole address."""
    return key[_PORT] == _NO_PORT


def slot_keys(frontend: abi.LbServiceKey, count: int) -> Iterator[bytes]:
    """The packed keys of a frontend's slots."""
    for slot in range(1, count + 1):
        yield replace(frontend, slot=slot).pack()


def _service_rows(
    one: ServedFrontend, service_id: int, chosen: list[int], head_flags: int, slot_row: SlotRow
) -> tuple[dict[bytes, bytes], bytes]:
    """The slots of a frontend, and the value of its slot 0, which has some flags for itself."""
    timeout = one.service.affinity_timeout
    flags = _FLAGS[one.frontend.kind] | (abi.LbServiceFlags.LB_F_AFFINITY if timeout else 0)
    if one.frontend.scope == EXTERNAL and has_two_scopes(one.service, one.frontend):
        flags |= abi.LbServiceFlags.LB_F_TWO_SCOPES
    if one.elsewhere and not chosen:
        head_flags |= abi.LbServiceFlags.LB_F_ELSEWHERE
    head_flags |= _source_policy(one)

    def value(target: int, more: int = 0) -> bytes:
        return abi.LbService(target, rev_nat=service_id, flags=flags | more, affinity_timeout=timeout).pack()

    keys = [_service_key(one.frontend.key, slot) for slot in range(1, len(chosen) + 1)]
    now = [abi.LbService.unpack(row).target if (row := slot_row(key)) else 0 for key in keys]
    placed = zip(keys, settled(chosen, now), strict=True)
    return {key: value(backend) for key, backend in placed}, value(len(chosen), head_flags)


def settled(wanted: Sequence[int], now: Sequence[int]) -> list[int]:
    """
    The *wanted* numbers, those that are there *now* in their places, the others in those that are free.

    Both are as long, and nothing is wanted twice.
    """
    coming = dict.fromkeys(wanted)
    places: list[int | None] = []
    for number in now:
        stays = number in coming
        places.append(number if stays else None)
        if stays:
            del coming[number]
    rest = iter(coming)
    return [next(rest) if number is None else number for number in places]


def _cluster_ip_row(key: FrontendKey) -> tuple[bytes, bytes]:
    """The row that says of the whole address that it is a service's: a port nobody serves is dropped."""
    packed = abi.LbServiceKey(addr=addr16(key.addr), port=0, protocol=0, scope=0, slot=0).pack()
    flags = abi.LbServiceFlags.LB_F_CLUSTER_IP
    return packed, abi.LbService(0, rev_nat=0, flags=flags, affinity_timeout=0).pack()


def _service_key(frontend: FrontendKey, slot: int) -> bytes:
    return abi.LbServiceKey(
        addr=addr16(frontend.addr),
        port=frontend.port,
        protocol=PROTOCOL_NUMBERS[frontend.protocol],
        scope=frontend.scope,
        slot=slot,
    ).pack()


def backend_row(key: BackendKey, backend_id: int, state: BackendState) -> tuple[bytes, bytes]:
    """The row of ``cilium_lb_backends_v1`` for a backend."""
    row = abi.LbBackend(backend_id, key.port, PROTOCOL_NUMBERS[key.protocol], int(state), addr16(key.addr))
    return _U32.pack(backend_id), row.pack()


def match_key(backend_id: int, service_id: int) -> bytes:
    """Says that a client may keep this backend of the frontend."""
    return abi.LbAffinityMatch(backend_id, rev_nat=service_id).pack()


def _source_policy(one: ServedFrontend) -> int:
    """The flag that says what the source ranges of a frontend mean; 0 where it has none."""
    if one.frontend.kind is not ServiceKind.LOAD_BALANCER or not one.service.source_ranges:
        return 0
    return _SOURCES[one.service.denies_sources]


def _source_keys(one: ServedFrontend, service_id: int) -> Iterator[bytes]:
    """The clients that a frontend names, each as one of its policy's."""
    if policy := _source_policy(one):
        for prefix in one.service.source_ranges:
            bits = abi.LbSourcePrefix.LB_SOURCE_PREFIX_FRONTEND + prefix_bits16(prefix)
            yield abi.LbSourceKey(bits, service_id, policy, addr16(prefix.network_address)).pack()


def _revnat_row(key: FrontendKey, service_id: int) -> tuple[bytes, bytes]:
    return _U32.pack(service_id), abi.LbRevnat(service_id, key.port, addr16(key.addr)).pack()
