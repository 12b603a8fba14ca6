# SPDX-License-Identifier: Apache-2.0
"""
A real Kubernetes of one to three nodes on one machine, without containers around the nodes.

A node is a set of namespaces (network, mount, pid, uts, ipc) with control groups, /etc, /opt, /run,
/var and a bpffs of its own; containerd and kubelet run in it as on any machine.  A bridge joins the
nodes and a namespace that is the world outside::

    machine .1 ---+--- bridge ---+--- node1 .11   (and the control plane)
    world   .2 ---+              +--- node2 .12

Nothing on the machine changes but the bridge, the namespaces and the control groups that bear the
cluster's prefix.  ``python -m lab.k8s up`` makes one by hand.
"""
