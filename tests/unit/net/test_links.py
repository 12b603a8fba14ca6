# SPDX-License-Identifier: Apache-2.0
"""Names and owner marks of devices."""

from hypothesis import given
from hypothesis import strategies as st

from ciliumd.net.links import EndpointOwner, endpoint_alias, endpoint_owner, lxc_name, random_mac


@given(st.integers(1, 65535), st.text("abc-/.", max_size=320))
def test_owner_mark_can_be_read_back(number: int, pod: str) -> None:
    """The endpoint id always; the pod's name as far as an alias has room."""
    alias = endpoint_alias(number, pod)
    owner = endpoint_owner(alias)

    assert len(alias) <= 255
    assert owner is not None
    assert owner.endpoint_id == number
    assert pod.startswith(owner.pod)


def test_foreign_aliases_have_no_owner() -> None:
    """Nothing that merely looks similar is taken for ours."""
    foreign = ["", "web", "cilium:host", "cilium:endpoint:", "cilium:endpoint:x:a/b", "cilium:endpoint:1"]

    assert [endpoint_owner(alias) for alias in foreign] == [None] * len(foreign)
    assert endpoint_owner("cilium:endpoint:7:a/b") == EndpointOwner(7, "a/b")


@given(st.text())
def test_host_device_name_is_stable_and_fits(key: str) -> None:
    """15 characters, the same at every restart."""
    assert lxc_name(key) == lxc_name(key)
    assert lxc_name(key).startswith("lxc")
    assert len(lxc_name(key)) == 15


def test_random_macs_are_unicast_local_and_differ() -> None:
    """Never a multicast address, never one a vendor may have given."""
    macs = [random_mac() for _ in range(200)]

    assert len(set(macs)) == 200
    assert all(int(mac[:2], 16) & 0b11 == 0b10 for mac in macs)
