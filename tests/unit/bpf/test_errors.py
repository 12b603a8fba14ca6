# SPDX-License-Identifier: Apache-2.0
"""One funnel from errno to exception; messages say what, where and what to do."""

from __future__ import annotations

import errno

import pytest

from ciliumd.bpf.errors import (
    BpfError,
    Detached,
    Exists,
    LayoutMismatch,
    NoSpace,
    NotFound,
    NotPermitted,
    VerifierRejected,
    check,
)


def test_results_that_are_not_negative_pass_through() -> None:
    """A descriptor or a zero comes back unchanged."""
    assert check(7, "open", "map") == 7
    assert check(0, "open", "map") == 0


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, NotFound),
        (errno.ENODEV, NotFound),
        (errno.EEXIST, Exists),
        (errno.E2BIG, NoSpace),
        (errno.ENOSPC, NoSpace),
        (errno.EPERM, NotPermitted),
        (errno.EACCES, NotPermitted),
        (errno.ENOLINK, Detached),
        (errno.EINVAL, BpfError),
    ],
)
def test_errno_decides_the_class(number: int, kind: type[BpfError]) -> None:
    """A caller can tell absent, present, full, forbidden and detached apart without reading numbers."""
    with pytest.raises(BpfError) as caught:
        check(-number, "update map", "cilium_ct_v1")
    assert type(caught.value) is kind
    assert (caught.value.op, caught.value.name, caught.value.errno) == ("update map", "cilium_ct_v1", number)


def test_missing_capability_says_what_to_do() -> None:
    """EPERM names the capabilities the agent needs."""
    with pytest.raises(NotPermitted, match="CAP_BPF and CAP_NET_ADMIN"):
        check(-errno.EPERM, "load", "lxc")


def test_verifier_rejection_shows_the_decisive_line_and_keeps_the_log() -> None:
    """The last line that is not bookkeeping reaches the message; the whole log stays available."""
    log = "0: (b7) r0 = 0\nR1 invalid mem access 'scalar'\nprocessed 5 insns (limit 1000000)\n"
    failure = VerifierRejected("load", "lxc (call_egress)", errno.EACCES, log)
    assert "R1 invalid mem access 'scalar'" in str(failure)
    assert "processed" not in str(failure)
    assert failure.log == log


def test_layout_mismatch_names_map_and_field() -> None:
    """An operator reads which map and which field differ, and what to do about it."""
    failure = LayoutMismatch("cilium_ct_v1", "value.flags", "@26:2:u16", "@24:2:u16")
    assert (failure.map, failure.field) == ("cilium_ct_v1", "value.flags")
    for words in ("cilium_ct_v1", "value.flags", "@26:2:u16", "@24:2:u16", "remove the pins"):
        assert words in str(failure)
