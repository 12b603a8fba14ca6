# SPDX-License-Identifier: Apache-2.0
"""When devices with filters are to get their links."""

import pytest

from ciliumd.daemon.behind import LATEST_SECONDS, QUIET_SECONDS, Behind
from unit.daemon import nodes


@pytest.fixture
def clock():
    """A clock that is set by hand."""
    return nodes.Clock()


def test_links_follow_when_no_pod_came_or_went_for_a_moment(clock):
    """The one that waited longest first; what follows is whoever asks for the next."""
    behind = Behind(clock=clock)
    assert behind.due() is None
    behind.add(7)
    clock.now += QUIET_SECONDS / 2
    behind.add(8)
    clock.now += QUIET_SECONDS * 0.9
    assert behind.due() is None
    clock.now += QUIET_SECONDS / 5
    assert behind.due() == 7
    assert behind.drop(7)
    assert behind.due() == 8
    assert 8 in behind
    assert 7 not in behind


def test_a_pod_that_goes_puts_links_off(clock):
    """Its deletion wants the lock of all devices, too."""
    behind = Behind(clock=clock)
    behind.add(7)
    clock.now += QUIET_SECONDS * 2
    behind.stir()
    assert behind.due() is None


def test_links_come_at_last_however_many_pods_come_and_go(clock):
    """A node that is never quiet has links, too."""
    behind = Behind(clock=clock)
    behind.add(7)
    waited = 0.0
    while behind.due() is None:
        clock.now += QUIET_SECONDS / 2
        waited += QUIET_SECONDS / 2
        behind.add(100 + int(waited * 2))
        assert waited <= LATEST_SECONDS
    assert behind.due() == 7
    assert waited == LATEST_SECONDS


def test_what_is_gone_waits_for_nothing(clock):
    """Dropped twice, it was there once."""
    behind = Behind(clock=clock)
    behind.add(7)
    assert behind.drop(7)
    assert not behind.drop(7)
    clock.now += LATEST_SECONDS
    assert behind.due() is None
