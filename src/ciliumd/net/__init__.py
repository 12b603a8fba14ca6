# SPDX-License-Identifier: Apache-2.0
"""
Effects on network devices, addresses, routes and tc, by netlink.

pyroute2's calls block and must not run on uvloop's thread: everything that takes an ``IPRoute`` here
is called through :class:`ciliumd.net.thread.NetlinkThread`.  BPF programs and maps are not touched.
"""
