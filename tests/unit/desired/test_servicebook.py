# SPDX-License-Identifier: Apache-2.0
"""The book of services, where one of them is more trouble than the others."""

from dataclasses import replace

import pytest

from ciliumd.desired.servicebook import ServiceBook
from ciliumd.model.objects import EndpointSliceRow
from unit.desired.worlds import backend, endpoint_slice, service


def test_a_service_that_fails_holds_up_no_other_and_is_made_again() -> None:
    """Its failure is raised; what became of the others is there, and is told once all is well."""
    broken = {("shop", "bad")}

    def slices(name: tuple[str, str]) -> list[EndpointSliceRow]:
        if name in broken:
            raise ValueError(f"{name} is broken")
        return [endpoint_slice(name[1], backend("10.0.0.1"))]

    book = ServiceBook(slices)
    made = [service(name, f"10.96.0.{n}") for n, name in enumerate(("good", "bad", "fine"), 1)]
    with pytest.raises(ValueError, match="is broken"):
        book.update({one.key: one for one in made})
    assert {name for _, name in book.entries} == {"good", "fine"}

    broken.clear()
    assert book.update({}) == {one.key for one in made}
    assert {name for _, name in book.entries} == {"good", "bad", "fine"}


def test_a_change_makes_only_those_anew_that_it_concerns() -> None:
    """The service itself, and who claims what it claims or claimed."""
    book = ServiceBook(lambda _: ())
    old = service("old", "10.96.0.1", created="2026-01-01T00:00:00Z")
    young = service("young", "10.96.0.1", created="2026-01-02T00:00:00Z")
    other = service("other", "10.96.0.9")
    book.update({one.key: one for one in (old, young, other)})
    assert [one.service.name for one in book.served() if one.frontend.addr == old.frontends[0].addr] == [
        "old"
    ]

    assert book.update({old.key: replace(old, affinity_timeout=30)}) == {old.key, young.key}
    assert book.update({old.key: None}) == {old.key, young.key}
    assert {one.service.name for one in book.served()} == {"young", "other"}
    assert book.update({}, [other.key]) == {other.key}
