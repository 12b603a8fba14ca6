# SPDX-License-Identifier: Apache-2.0
"""
Kinds of objects as the API server serves them, and those the agent follows.

What an object means is said in ``resources``.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Kind:
    """
    A kind and where it is served.  *group* is empty for the core group.

    *shown* is its name in ``cilium status`` (Cilium's spelling).
    """

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool
    shown: str = field(default="", compare=False)

    @property
    def api_version(self) -> str:
        """As written in objects: ``v1``, ``cilium.io/v2``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, name: str = "", *, namespace: str = "", subresource: str = "") -> str:
        """
        Path of an object, or of the collection (of one namespace, or of all) without a *name*.

        Raises ValueError for a namespaced object without its namespace.
        """
        if self.namespaced and name and not namespace:
            raise ValueError(f"{self.kind} {name}: a namespace is needed")
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part]
        return "/" + "/".join(parts)

    def template(self, *, one: bool, subresource: str = "") -> str:
        """The path without names, for metrics: ``/api/v1/namespaces/{namespace}/pods/{name}``."""
        return self.path(
            "{name}" if one else "",
            namespace="{namespace}" if self.namespaced and one else "",
            subresource=subresource,
        )


NAMESPACE = Kind("", "v1", "Namespace", "namespaces", namespaced=False, shown="core/v1::Namespace")
NODE = Kind("", "v1", "Node", "nodes", namespaced=False, shown="core/v1::Node")
POD = Kind("", "v1", "Pod", "pods", namespaced=True, shown="core/v1::Pods")
SERVICE = Kind("", "v1", "Service", "services", namespaced=True, shown="core/v1::Service")
ENDPOINT_SLICE = Kind(
    "discovery.k8s.io",
    "v1",
    "EndpointSlice",
    "endpointslices",
    namespaced=True,
    shown="discovery/v1::EndpointSlice",
)
NETWORK_POLICY = Kind(
    "networking.k8s.io",
    "v1",
    "NetworkPolicy",
    "networkpolicies",
    namespaced=True,
    shown="networking.k8s.io/v1::NetworkPolicy",
)
EVENT = Kind("", "v1", "Event", "events", namespaced=True)


def _cilium(kind: str, plural: str, *, namespaced: bool) -> Kind:
    return Kind("cilium.io", "v2", kind, plural, namespaced=namespaced, shown=f"cilium/v2::{kind}")


CILIUM_NETWORK_POLICY = _cilium("CiliumNetworkPolicy", "ciliumnetworkpolicies", namespaced=True)
CILIUM_CLUSTERWIDE_NETWORK_POLICY = _cilium(
    "CiliumClusterwideNetworkPolicy", "ciliumclusterwidenetworkpolicies", namespaced=False
)
CILIUM_CIDR_GROUP = _cilium("CiliumCIDRGroup", "ciliumcidrgroups", namespaced=False)
CILIUM_NODE = _cilium("CiliumNode", "ciliumnodes", namespaced=False)
CILIUM_IDENTITY = _cilium("CiliumIdentity", "ciliumidentities", namespaced=False)
CILIUM_ENDPOINT = _cilium("CiliumEndpoint", "ciliumendpoints", namespaced=True)

TABLES_OF = {
    NAMESPACE: "namespaces",
    POD: "pods",
    SERVICE: "services",
    ENDPOINT_SLICE: "slices",
    NETWORK_POLICY: "policies",
    CILIUM_NETWORK_POLICY: "policies",
    CILIUM_CLUSTERWIDE_NETWORK_POLICY: "policies",
    CILIUM_CIDR_GROUP: "cidr_groups",
    CILIUM_NODE: "nodes",
    CILIUM_IDENTITY: "cluster_identities",
    CILIUM_ENDPOINT: "remote_endpoints",
    NODE: "",
}
"""Every kind the agent follows, and the table its rows are in; a Node is no row."""


def selector(kind: Kind, *, node: str) -> str:
    """The field selector by which the agent of *node* follows *kind*: its own pods, its own Node."""
    if kind == POD:
        return f"spec.nodeName={node}"
    if kind == NODE:
        return f"metadata.name={node}"
    return ""
