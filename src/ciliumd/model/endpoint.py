# SPDX-License-Identifier: Apache-2.0
"""
What an endpoint is made of: what was fixed when a pod was wired to the node, and what somebody set for it
alone; both are kept across restarts.

Identity and policy are not here: they follow from pods and policies and change while it lives.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from ciliumd.model.net import Addr

ENDPOINT_ID_MAX = 65535

HEALTH_POD = ("", "cilium-health")
"""Pod key of the node's own health endpoint, which is no pod: no namespace can have an empty name."""
HEALTH_NAME = "/".join(HEALTH_POD)
"""What it is called where a pod is ``namespace/name``."""


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """
    One pod's wiring.  *ifname* and *ifindex* are the host side of its veth, *mac* is the pod's.

    A runtime knows it by *container_id* and *ifname_in_pod*; without a runtime the first is empty.
    *netns_cookie* is the kernel's number of its network namespace, 0 when it is not known.
    *audit* tells whether what its policies would drop is let through; None: as on the rest of the node.
    """

    id: int
    slot: int
    slot_gen: int
    namespace: str
    pod: str
    container_id: str
    netns: str
    ifname: str
    ifindex: int
    mac: str
    node_mac: str
    ipv4: IPv4Address | None
    ipv6: IPv6Address | None
    ifname_in_pod: str = "eth0"
    netns_cookie: int = 0
    audit: bool | None = None

    @property
    def addresses(self) -> tuple[Addr, ...]:
        """Its addresses, IPv4 first."""
        return tuple(addr for addr in (self.ipv4, self.ipv6) if addr is not None)

    def is_audited(self, *, node: bool) -> bool:
        """Whether it is audited, where the *node* says what holds for all."""
        return node if self.audit is None else self.audit

    @property
    def pod_key(self) -> tuple[str, str]:
        """Key of its pod's row: (namespace, name)."""
        return (self.namespace, self.pod)
