# SPDX-License-Identifier: Apache-2.0
"""
Kinds only the operator touches, and writes that cannot hit another version or another object.

Everything the operator changes or deletes it has read before; what it decided is void if the object is
not that one any more.
"""

from collections.abc import Mapping
from typing import Any, Final

from ciliumd.kubernetes.client import Api, Json, ObjectName
from ciliumd.kubernetes.kinds import (
    CILIUM_CLUSTERWIDE_NETWORK_POLICY,
    CILIUM_NETWORK_POLICY,
    NETWORK_POLICY,
    Kind,
)

LEASE: Final = Kind("coordination.k8s.io", "v1", "Lease", "leases", namespaced=True)
SERVICE_CIDR: Final = Kind("networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs", namespaced=False)
DEFINITION: Final = Kind(
    "apiextensions.k8s.io",
    "v1",
    "CustomResourceDefinition",
    "customresourcedefinitions",
    namespaced=False,
)
POLICIES: Final = (CILIUM_NETWORK_POLICY, CILIUM_CLUSTERWIDE_NETWORK_POLICY, NETWORK_POLICY)

Key = tuple[str, str]
"""(namespace, name); the namespace is empty for cluster scope."""


def key_of(document: Mapping[str, Any]) -> Key:
    """Key of an object."""
    metadata = document["metadata"]
    return metadata.get("namespace") or "", metadata["name"]


def identity_of(document: Mapping[str, Any]) -> ObjectName:
    """What identifies the version of an object that was read."""
    metadata = document["metadata"]
    namespace, name = key_of(document)
    return ObjectName(name, namespace, metadata["uid"], metadata["resourceVersion"])


def condition(document: Mapping[str, Any], kind: str) -> Json:
    """The condition of type *kind* in an object's status; empty without."""
    for one in (document.get("status") or {}).get("conditions") or ():
        if one.get("type") == kind:
            return dict(one)
    return {}


def with_condition(document: Mapping[str, Any], wanted: Json) -> Json:
    """A change of an object's status that puts *wanted* in place of the condition of its type."""
    present = (document.get("status") or {}).get("conditions") or ()
    others = [one for one in present if one.get("type") != wanted["type"]]
    return {"status": {"conditions": [*others, wanted]}}


async def change(
    api: Api, kind: Kind, seen: Mapping[str, Any], changes: Json, *, subresource: str = ""
) -> Json:
    """
    Change the object *seen* by a merge patch; the object as it is now.

    Raises Conflict unless it is still as it was seen: lists are replaced whole, so what others wrote
    meanwhile would be lost.
    """
    namespace, name = key_of(seen)
    guarded = {**changes, "metadata": {"resourceVersion": seen["metadata"]["resourceVersion"]}}
    return await api.patch(kind, name, guarded, namespace=namespace, subresource=subresource)


async def delete(api: Api, kind: Kind, seen: ObjectName, *, unchanged: bool = False) -> None:
    """Delete the object *seen*, with *unchanged* only if nobody has written it since; Conflict otherwise."""
    version = seen.resource_version if unchanged else ""
    await api.delete(kind, seen.name, namespace=seen.namespace, uid=seen.uid, version=version)
