# SPDX-License-Identifier: Apache-2.0
"""A kernel without IPv6 is told at the start, not by the first device that cannot be configured."""

from ciliumd.daemon.datapath import ipv6_problem


def test_kernel_without_ipv6_is_a_reason_where_pods_are_to_have_it(tmp_path):
    """And none where they are not."""
    assert "no IPv6" in ipv6_problem(True, tmp_path)
    assert ipv6_problem(False, tmp_path) == ""
    (tmp_path / "sys/net/ipv6").mkdir(parents=True)
    assert ipv6_problem(True, tmp_path) == ""
