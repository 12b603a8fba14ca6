# SPDX-License-Identifier: Apache-2.0
"""
``ciliumd operator``: what a cluster needs once and not on every node.

Definitions of the custom kinds, pod CIDRs, garbage, node taints and conditions, and the judgement on
policies.  One leader works, the others wait.  Nothing here is on the path of a packet or of a pod start.
"""
