# SPDX-License-Identifier: Apache-2.0
"""
CiliumCIDRGroup (cilium.io/v2, and v2alpha1 as before Cilium 1.17): prefixes that policies refer to.

What a policy means by one is said in ``ciliumrules`` and ``desired.policy.references``.
"""

from typing import Any

from pydantic import Field

from ciliumd.model.labels import object_labels
from ciliumd.model.objects import CIDRGroupRow
from ciliumd.resources.errors import FieldError
from ciliumd.resources.fields import CIDROrAddress, Exact, ObjectMeta, Row

KIND = "CiliumCIDRGroup"


class CIDRGroupSpec(Exact):
    """The prefixes; none is a group of nobody."""

    external_cidrs: list[CIDROrAddress] = Field(alias="externalCIDRs")


class CiliumCIDRGroup(Exact):
    """Prefixes outside the cluster that policies name or select by its labels."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    spec: CIDRGroupSpec
    status: dict[str, Any] | None = None

    def rows(self) -> list[Row]:
        """One row of ``cidr_groups``."""
        if self.metadata.namespace is not None:
            raise FieldError("metadata.namespace", "is set: the group is one of the whole cluster")
        row = CIDRGroupRow(
            name=self.metadata.name,
            labels=object_labels(self.metadata.labels or {}),
            prefixes=tuple(dict.fromkeys(self.spec.external_cidrs)),
        )
        return [("cidr_groups", row.name, row)]
