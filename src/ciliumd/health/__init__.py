# SPDX-License-Identifier: Apache-2.0
"""
Whether the nodes of the cluster reach each other, and whether packets pass through this one.

Every node answers at its own address and, from a namespace of its own, at its health endpoint's, which
is reached like a pod.  Probes of both, by ICMP and by HTTP, tell a broken network from a broken tunnel.
"""
