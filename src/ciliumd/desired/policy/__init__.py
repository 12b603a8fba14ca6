# SPDX-License-Identifier: Apache-2.0
"""
From policies to the rows the datapath goes by, without any effect.

::

    policies + endpoint labels --select--> EndpointRules --resolve--> MapState
    a new identity             --classify--> additions to a MapState
    policies + endpoints + identities --Versions.plan--> Round --commit--> who is under which version
    MapState + traffic         --lookup--> verdict and cookie  (as the datapath)

Everything about precedence is settled before a row is written: see ``ruling``.
"""

from ciliumd.desired.policy.cookies import (
    ALLOW_LOCALHOST,
    ALWAYS_ORIGIN,
    INIT_ORIGIN,
    NO_COOKIE,
    RuleNames,
    cookie,
    cookies,
)
from ciliumd.desired.policy.explain import DirectionVerdict, Explanation, Party, explain
from ciliumd.desired.policy.interpret import lookup, lookup_row
from ciliumd.desired.policy.maprows import CorruptRowsError, packed_classes, packed_rules, unpacked
from ciliumd.desired.policy.mapstate import MapState
from ciliumd.desired.policy.replay import Judged, Outside, Said, replay
from ciliumd.desired.policy.round import Round
from ciliumd.desired.policy.rules import PROTOCOL_NUMBERS, NamedPorts
from ciliumd.desired.policy.ruling import ClassesExhaustedError, classify, resolve
from ciliumd.desired.policy.select import EndpointRules, blocks, cidrs, select
from ciliumd.desired.policy.selectorcache import Selected, SelectorCache
from ciliumd.desired.policy.versions import RETIRE_AFTER, Versions, VersionsExhaustedError
from ciliumd.desired.policy.world import StandIns, Subject, World

__all__ = [
    "ALLOW_LOCALHOST",
    "ALWAYS_ORIGIN",
    "INIT_ORIGIN",
    "NO_COOKIE",
    "PROTOCOL_NUMBERS",
    "RETIRE_AFTER",
    "ClassesExhaustedError",
    "CorruptRowsError",
    "DirectionVerdict",
    "EndpointRules",
    "Explanation",
    "Judged",
    "MapState",
    "NamedPorts",
    "Outside",
    "Party",
    "Round",
    "RuleNames",
    "Said",
    "Selected",
    "SelectorCache",
    "StandIns",
    "Subject",
    "Versions",
    "VersionsExhaustedError",
    "World",
    "blocks",
    "cidrs",
    "classify",
    "cookie",
    "cookies",
    "explain",
    "lookup",
    "lookup_row",
    "packed_classes",
    "packed_rules",
    "replay",
    "resolve",
    "select",
    "unpacked",
]
