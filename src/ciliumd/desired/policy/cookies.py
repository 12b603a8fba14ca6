# SPDX-License-Identifier: Apache-2.0
"""
Rule cookies: the 32-bit numbers by which map rows and events name the rule behind a verdict.

A cookie is a hash of the rule's origin, so the same policies give the same rows after a restart.
Two origins may share a cookie; the way back therefore yields every candidate.
"""

from collections.abc import Hashable, Iterable
from zlib import crc32

from ciliumd.model.policy import Policy

NO_COOKIE = 0
"""Cookie of a row that no rule is behind: traffic of a direction without policy."""

ALLOW_LOCALHOST = "reserved:allow-localhost-ingress"
"""Origin of the built-in rule that lets the node reach its own pods."""

INIT_ORIGIN = "reserved:init"
"""Origin of the default deny of endpoints whose pod is not known yet."""

ALWAYS_ORIGIN = "reserved:enable-policy-always"
"""Origin of the default deny of every endpoint where policy is always enforced."""


def cookie(origin: str) -> int:
    """Return the cookie of *origin*; never :data:`NO_COOKIE`."""
    return crc32(origin.encode()) or 1


class RuleNames:
    """
    Every cookie that rows made from some policies may carry, with the *origins* it stands for.

    Kept up to date policy by policy: of thousands one changes.
    """

    def __init__(self) -> None:
        self.origins: dict[int, tuple[str, ...]] = {}
        self._by_policy: dict[Hashable, set[str]] = {}
        for origin in (ALLOW_LOCALHOST, INIT_ORIGIN, ALWAYS_ORIGIN):
            self._add(origin)

    def put(self, key: Hashable, policy: Policy | None) -> None:
        """There is this *policy* under *key*, or None any more."""
        for origin in self._by_policy.pop(key, ()):
            number = cookie(origin)
            left = tuple(other for other in self.origins[number] if other != origin)
            if left:
                self.origins[number] = left
            else:
                del self.origins[number]
        if policy is not None:
            self._by_policy[key] = {policy.origin, *(rule.origin for rule in policy.rules)}
            for origin in self._by_policy[key]:
                self._add(origin)

    def _add(self, origin: str) -> None:
        number = cookie(origin)
        self.origins[number] = tuple(sorted({*self.origins.get(number, ()), origin}))


def cookies(policies: Iterable[Policy]) -> dict[int, tuple[str, ...]]:
    """Return every cookie that rows made from *policies* may carry, with the origins it stands for."""
    names = RuleNames()
    for number, policy in enumerate(policies):
        names.put(number, policy)
    return names.origins
