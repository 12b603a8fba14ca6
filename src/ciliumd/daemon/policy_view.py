# SPDX-License-Identifier: Apache-2.0
"""What the node's plan came to for policies, as the CLI and events show it."""

from dataclasses import dataclass, field

from ciliumd.daemon.policy_versions import World
from ciliumd.desired.policy import EndpointRules, MapState


@dataclass(slots=True)
class PolicyView:
    """
    Who is under which policy, for the CLI and for events.

    *waiting* endpoints have another one coming; *world* is what the versions were computed for.
    """

    rules: dict[int, EndpointRules] = field(default_factory=dict)
    versions: dict[int, int] = field(default_factory=dict)
    states: dict[int, MapState] = field(default_factory=dict)
    cookies: dict[int, tuple[str, ...]] = field(default_factory=dict)
    world: World = field(default_factory=World)
    waiting: frozenset[int] = frozenset()
