# SPDX-License-Identifier: Apache-2.0
"""
CiliumNetworkPolicy (cilium.io/v2): the policy of one namespace, and what both of Cilium's kinds share.

What its rules mean is said in ``ciliumrules``.
"""

from typing import Any

from ciliumd.resources.ciliumrules import About, RuleSpec
from ciliumd.resources.errors import FieldError
from ciliumd.resources.fields import Exact, ObjectMeta, Row

KIND = "CiliumNetworkPolicy"


class CiliumPolicy(Exact):
    """A policy of Cilium's kinds: one ``spec``, several ``specs``, or both."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    spec: RuleSpec | None = None
    specs: list[RuleSpec] | None = None
    status: dict[str, Any] | None = None

    def policy_rows(self, namespace: str | None, origin: str) -> list[Row]:
        """
        Rows of ``policies``: ``spec`` under the policy's name, each of ``specs`` under name/specs/n.

        *namespace* None is the whole cluster; rules are told apart by *origin* and their place.
        """
        if self.spec is None and not self.specs:
            raise FieldError("spec", "is missing")
        parts = [] if self.spec is None else [("spec", "", self.spec)]
        parts += [(f"specs[{i}]", f"/specs/{i}", spec) for i, spec in enumerate(self.specs or ())]
        rows: list[Row] = []
        for field, part, spec in parts:
            about = About(
                kind=self.kind,
                namespace=namespace,
                name=self.metadata.name,
                uid=self.metadata.uid,
                field=field,
                origin=origin + part,
            )
            key = (self.kind, namespace or "", self.metadata.name + part)
            rows.append(("policies", key, spec.to_policy(about)))
        return rows


class CiliumNetworkPolicy(CiliumPolicy):
    """A CiliumNetworkPolicy."""

    def rows(self) -> list[Row]:
        """Its rows of ``policies``."""
        namespace = self.metadata.scope
        return self.policy_rows(namespace, f"cnp:{namespace}/{self.metadata.name}")
