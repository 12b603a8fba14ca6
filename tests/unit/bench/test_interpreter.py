# SPDX-License-Identifier: Apache-2.0
"""Programs are found in whichever section they are, with the maps that they name."""

import pytest

from bench.interpreter.elf import read
from ciliumd.bpf.object import embedded


@pytest.mark.parametrize(
    ("name", "program", "known"),
    [("lxc", "call_egress", "cilium_ct_v1"), ("sock", "sock_connect4", "cilium_lb_services_v1")],
)
def test_programs_have_the_maps_they_name(name, program, known):
    """Sections of packets' programs and of sockets' number their instructions each from 0."""
    image = read(embedded()[name].data)
    named = {one.reference.name for one in image.programs[program] if one.reference is not None}
    assert known in named


def test_hooks_of_sockets_are_programs_of_their_own():
    """Each is a section; what one refers to is not taken for what another does at the same place."""
    programs = read(embedded()["sock"].data).programs
    assert {"sock_connect4", "sock_recvmsg4", "sock_getpeername4", "sock_post_bind4"} <= programs.keys()
    named = {one.reference.name for one in programs["sock_recvmsg4"] if one.reference is not None}
    assert "cilium_lb_sock_v1" in named
    assert "cilium_lb_backends_v1" not in named
