# SPDX-License-Identifier: Apache-2.0
"""
Which backends are the nearest ones: those that hints say are meant for clients of this node or its zone.

Hints are those of the EndpointSlices (KEP-2433, KEP-3015), which Kubernetes writes for services that say
``trafficDistribution`` (KEP-4444).  Where slices are written by somebody who gives none, they are what that
field would have had Kubernetes write.  Hints are followed as every other proxy does: all backends have one,
and one of them is for here; else all count, for some would get no traffic, or this node no answer.
"""

from collections.abc import Callable, Sequence

from ciliumd.model.service import Backend, Hints, Place, TrafficDistribution

_NONE = Hints()


def nearest(
    ready: tuple[Backend, ...], here: Place, distribution: TrafficDistribution | None
) -> tuple[Backend, ...]:
    """Those of the *ready* backends that are for *here*; all of them if nothing says which these are."""
    if any(backend.hints for backend in ready):
        hints = [backend.hints or _NONE for backend in ready]
    elif distribution is not None:
        hints = [_wished(backend, distribution) for backend in ready]
    else:
        return ready
    return (
        _meant_for(here.node, ready, hints, lambda one: one.nodes)
        or _meant_for(here.zone, ready, hints, lambda one: one.zones)
        or ready
    )


def _wished(backend: Backend, distribution: TrafficDistribution) -> Hints:
    """The hints of one that *distribution* makes: where it is itself."""
    near = distribution is TrafficDistribution.SAME_NODE and backend.node
    return Hints((backend.zone,) if backend.zone else (), (backend.node,) if near and backend.node else ())


def _meant_for(
    place: str | None,
    ready: Sequence[Backend],
    hints: Sequence[Hints],
    names: Callable[[Hints], tuple[str, ...]],
) -> tuple[Backend, ...]:
    """Those with a hint for *place*; none unless all have one for somewhere."""
    if not place or not all(map(names, hints)):
        return ()
    return tuple(backend for backend, one in zip(ready, hints, strict=True) if place in names(one))
