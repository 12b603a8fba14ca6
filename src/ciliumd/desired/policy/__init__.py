# SPDX-License-Identifier: Apache-2.0
"""
From policies to the rows the datapath goes by, without any effect.

::

    policies + endpoint labels --select--> EndpointRules --resolve--> MapState --plan_versions--> versions
    a new identity             --classify--> additions to a MapState
    MapState + traffic         --lookup--> verdict and cookie  (as the datapath)

Everything about precedence is settled before a row is written: see ``mapstate``.
"""

from ciliumd.desired.policy.cookies import ALLOW_LOCALHOST, INIT_ORIGIN, NO_COOKIE, cookie, cookies
from ciliumd.desired.policy.explain import DirectionVerdict, Explanation, Party, explain
from ciliumd.desired.policy.interpret import lookup, lookup_row
from ciliumd.desired.policy.maprows import CorruptRowsError, packed_classes, packed_rules, unpacked
from ciliumd.desired.policy.mapstate import ClassesExhaustedError, MapState, classify, resolve
from ciliumd.desired.policy.rules import NamedPorts, SelectorCache
from ciliumd.desired.policy.select import EndpointRules, cidrs, select
from ciliumd.desired.policy.versions import VersionPlan, VersionsExhaustedError, plan_versions

__all__ = [
    "ALLOW_LOCALHOST",
    "INIT_ORIGIN",
    "NO_COOKIE",
    "ClassesExhaustedError",
    "CorruptRowsError",
    "DirectionVerdict",
    "EndpointRules",
    "Explanation",
    "MapState",
    "NamedPorts",
    "Party",
    "SelectorCache",
    "VersionPlan",
    "VersionsExhaustedError",
    "cidrs",
    "classify",
    "cookie",
    "cookies",
    "explain",
    "lookup",
    "lookup_row",
    "packed_classes",
    "packed_rules",
    "plan_versions",
    "resolve",
    "select",
    "unpacked",
]
