# SPDX-License-Identifier: Apache-2.0
"""What a machine lacks is said in one sentence, before anything fails obscurely."""

from __future__ import annotations

import errno
import resource

import pytest

from ciliumd.bpf import features
from ciliumd.bpf.errors import KernelTooOld, NotPermitted

ALL = "Name:\tx\nCapEff:\t000001ffffffffff\n"


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.1.0-18-amd64", (6, 1)), ("5.10.0", (5, 10)), ("6.18.44-fc-v669", (6, 18)), ("7.2-rc1", (7, 2))],
)
def test_kernel_releases_are_read(release: str, version: tuple[int, int]) -> None:
    """Distributions append what they like."""
    assert features.kernel_version(release) == version


def test_an_old_kernel_is_refused_with_both_versions() -> None:
    """The operator reads what is there and what is needed."""
    with pytest.raises(KernelTooOld, match=r"found 4\.19\.0-27-amd64, needed 5\.10"):
        features.require_kernel("4.19.0-27-amd64")
    features.require_kernel("5.10.0-1")


def test_capabilities_are_read_from_the_effective_set() -> None:
    """CapEff counts; CAP_SYS_ADMIN stands for those split off it."""
    assert features.effective_capabilities(ALL) == frozenset(features.CAPABILITIES)
    assert features.effective_capabilities("CapEff:\t0000000000000000\n") == frozenset()
    admin = f"CapEff:\t{1 << 21 | 1 << 12:016x}\n"
    assert {"CAP_BPF", "CAP_NET_ADMIN"} <= features.effective_capabilities(admin)


def test_missing_capabilities_are_named() -> None:
    """What to add is in the message."""
    with pytest.raises(NotPermitted, match="missing CAP_BPF: run as root"):
        features.require_capabilities(frozenset({"CAP_NET_ADMIN", "CAP_PERFMON"}))
    with pytest.raises(NotPermitted, match="CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"):
        features.require_capabilities(frozenset())


def test_limit_of_locked_memory_is_raised_where_maps_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 5.11 only; who may not is told what to add."""
    asked = []
    monkeypatch.setattr(resource, "setrlimit", lambda *words: asked.append(words))
    features.require_locked_memory("6.1.0-50")
    assert asked == []
    features.require_locked_memory("5.10.0-32")
    assert asked == [(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))]

    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (65536, 65536))
    with pytest.raises(NotPermitted, match=r"64 KiB are allowed here: add CAP_SYS_RESOURCE") as caught:
        features.require_locked_memory("5.10.0-32")
    assert caught.value.errno == errno.EPERM
