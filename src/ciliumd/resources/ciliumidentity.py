# SPDX-License-Identifier: Apache-2.0
"""
CiliumIdentity (cilium.io/v2): a set of labels and the number it has in the whole cluster.

The number is the object's name, so the API server sees to it that a number means one thing only.  The
same labels may have two numbers for a while, when two nodes met them at the same moment.
"""

import re

from pydantic import Field

from ciliumd.model.identity import CLUSTER_MAX, CLUSTER_MIN, NumericIdentity
from ciliumd.model.labels import NODE, RESERVED, SOURCES, Label, Labels
from ciliumd.resources.errors import FieldError
from ciliumd.resources.fields import Lenient, ObjectMeta, Row

_NUMBER = re.compile(r"[1-9][0-9]{0,9}")


class CiliumIdentity(Lenient):
    """One identity of the cluster."""

    metadata: ObjectMeta
    security_labels: dict[str, str] = Field(alias="security-labels", min_length=1)

    def rows(self) -> list[Row]:
        """One row of ``cluster_identities``."""
        return [("cluster_identities", self._number(), self._labels())]

    def _number(self) -> NumericIdentity:
        name = self.metadata.name
        number = int(name) if _NUMBER.fullmatch(name) else 0
        if not CLUSTER_MIN <= number <= CLUSTER_MAX:
            message = f"must be a number between {CLUSTER_MIN} and {CLUSTER_MAX}, not {name!r}"
            raise FieldError("metadata.name", message)
        return number

    def _labels(self) -> Labels:
        labels = set()
        for written, value in self.security_labels.items():
            source, colon, key = written.partition(":")
            where = f'security-labels["{written}"]'
            if not colon or not key or source not in SOURCES:
                raise FieldError(where, "must be a label with its source, like k8s:app")
            if source in (RESERVED, NODE):
                raise FieldError(where, "is a label of the agent's own identities, which have no object")
            labels.add(Label(source, key, value))
        return frozenset(labels)
