# SPDX-License-Identifier: Apache-2.0
"""
CiliumClusterwideNetworkPolicy (cilium.io/v2): a policy of the whole cluster.

Its ``endpointSelector`` takes endpoints of every namespace, and those without one: an empty selector is
every endpoint, the health endpoints and pods not yet known included, so a policy that isolates everything
must let ``health`` in for health checks to pass (as Cilium documents).  Nodes are selected by
``nodeSelector`` alone, which is refused until there is a host firewall.
"""

from ciliumd.resources.ciliumnetworkpolicy import CiliumPolicy
from ciliumd.resources.errors import FieldError
from ciliumd.resources.fields import Row

KIND = "CiliumClusterwideNetworkPolicy"


class CiliumClusterwideNetworkPolicy(CiliumPolicy):
    """A CiliumClusterwideNetworkPolicy."""

    def rows(self) -> list[Row]:
        """Its rows of ``policies``; it has no namespace."""
        if self.metadata.namespace is not None:
            raise FieldError("metadata.namespace", "is set: the policy is one of the whole cluster")
        return self.policy_rows(None, f"ccnp:{self.metadata.name}")
