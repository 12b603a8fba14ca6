# SPDX-License-Identifier: Apache-2.0
"""
Rule cookies: the 32-bit numbers by which map rows and events name the rule behind a verdict.

A cookie is a hash of the rule's origin, so the same policies give the same rows after a restart.
Two origins may share a cookie; the way back therefore yields every candidate.
"""

from collections.abc import Iterable
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


def cookies(policies: Iterable[Policy]) -> dict[int, tuple[str, ...]]:
    """Return every cookie that rows made from *policies* may carry, with the origins it stands for."""
    origins = {ALLOW_LOCALHOST, INIT_ORIGIN, ALWAYS_ORIGIN}
    for policy in policies:
        origins.add(policy.origin)
        origins.update(rule.origin for rule in policy.rules)
    found: dict[int, tuple[str, ...]] = {}
    for origin in sorted(origins):
        number = cookie(origin)
        found[number] = (*found.get(number, ()), origin)
    return found
