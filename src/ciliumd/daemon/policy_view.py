# SPDX-License-Identifier: Apache-2.0
"""What the node's plan came to for policies, as the CLI and events show it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ciliumd.daemon.policy_versions import World
from ciliumd.desired.policy import EndpointRules, MapState, RuleNames


@dataclass(slots=True)
class PolicyView:
    """
    Who is under which policy, for the CLI and for events.

    *waiting* endpoints have another one coming; *world* is what the versions were computed for.
    """

    names: RuleNames = field(default_factory=RuleNames)
    rules: dict[int, EndpointRules] = field(default_factory=dict)
    versions: dict[int, int] = field(default_factory=dict)
    states: dict[int, MapState] = field(default_factory=dict)
    world: World = field(default_factory=World)
    waiting: frozenset[int] = frozenset()

    @property
    def cookies(self) -> Mapping[int, tuple[str, ...]]:
        """The origins that the cookies of rows stand for."""
        return self.names.origins
