# SPDX-License-Identifier: Apache-2.0
"""
Kinds of events that this node's programs do not send: one word of its state, by Cilium's options.

What is configured holds from the agent's start on; ``cilium config`` changes it until the next one.
"""

from collections.abc import Mapping
from typing import Final

from ciliumd.abi import EventType, NodeState
from ciliumd.daemon.settings import Settings

WORD: Final = NodeState.NODE_STATE_SILENT_EVENTS
OPTIONS: Final = {
    "DropNotification": EventType.EVENT_DROP,
    "PolicyVerdictNotification": EventType.EVENT_POLICY_VERDICT,
    "TraceNotification": EventType.EVENT_TRACE,
}
"""Cilium's name for each kind (its ``pkg/option``)."""


def configured(settings: Settings) -> int:
    """The word that settings ask for."""
    return changed(
        0,
        {
            "DropNotification": settings.bpf_events_drop_enabled,
            "PolicyVerdictNotification": settings.bpf_events_policy_verdict_enabled,
            "TraceNotification": settings.bpf_events_trace_enabled,
        },
    )


def changed(word: int, options: Mapping[str, bool]) -> int:
    """The *word* with kinds sent or not; what *options* leave out stays as it is."""
    for name, is_sent in options.items():
        bit = 1 << OPTIONS[name]
        word = word & ~bit if is_sent else word | bit
    return word


def enabled(word: int) -> dict[str, bool]:
    """Whether each kind is sent, by its option."""
    return {name: not word & 1 << kind for name, kind in OPTIONS.items()}
