# SPDX-License-Identifier: Apache-2.0
"""Which kinds of events are sent: configured, shown, and changed on a running node."""

import pytest

from ciliumd.abi import EventType
from ciliumd.daemon import event_kinds
from ciliumd.daemon.answers import Answers
from ciliumd.daemon.settings import read_settings

REQUIRED = ["--manifests", "/m", "--node-name", "n", "--pod-cidr", "10.0.0.0/24"]
EVERY = {"DropNotification": True, "PolicyVerdictNotification": True, "TraceNotification": True}


def test_every_kind_has_an_option():
    """Programs have no kind that nobody can turn off."""
    assert set(event_kinds.OPTIONS.values()) == set(EventType)


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--no-bpf-events-drop-enabled", "DropNotification"),
        ("--no-bpf-events-policy-verdict-enabled", "PolicyVerdictNotification"),
        ("--no-bpf-events-trace-enabled", "TraceNotification"),
    ],
)
def test_settings_turn_one_kind_off(option, name):
    """All are on by default; the word has the bit of the kind that programs ask for."""
    assert event_kinds.configured(read_settings(REQUIRED)) == 0
    word = event_kinds.configured(read_settings([*REQUIRED, option]))
    assert word == 1 << event_kinds.OPTIONS[name]
    assert event_kinds.enabled(word) == EVERY | {name: False}


def test_a_running_agent_changes_what_is_named(agent):
    """One word of the node's state, which is also what it shows."""
    agent.ring, agent.settings = None, read_settings(REQUIRED)
    answers = Answers(agent)
    answers.configure({"TraceNotification": False})
    answers.configure({"DropNotification": False})
    answers.configure({"TraceNotification": True})

    assert agent.datapath.word(event_kinds.WORD) == 1 << EventType.EVENT_DROP
    assert answers.config()["spec"]["options"] == EVERY | {"DropNotification": False}
