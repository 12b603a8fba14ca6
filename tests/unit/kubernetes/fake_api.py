# SPDX-License-Identifier: Apache-2.0
"""An API server in a dictionary: versions, names given once, conflicts; and failures on demand."""

import copy
from collections.abc import Mapping
from typing import Any

from ciliumd.kubernetes.client import Listing, ObjectName
from ciliumd.kubernetes.errors import AlreadyExists, ApiError, Conflict, NotFound
from ciliumd.kubernetes.kinds import Kind


class FakeApi:
    """As much of :class:`ciliumd.kubernetes.client.Api` as publishers use."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.asked: list[str] = []
        self.failing: ApiError | None = None
        self._version = 100

    def put(self, kind: Kind, document: Mapping[str, Any]) -> None:
        """Somebody else writes an object."""
        metadata = document["metadata"]
        key = (kind.kind, metadata.get("namespace", ""), metadata["name"])
        self._store(key, document)

    def of(self, kind: Kind) -> dict[tuple[str, str], dict[str, Any]]:
        """All objects of a kind by (namespace, name)."""
        return {key[1:]: one for key, one in self.objects.items() if key[0] == kind.kind}

    async def get(self, kind: Kind, name: str, *, namespace: str = "") -> dict[str, Any]:
        """As the real one."""
        self._ask("get", kind, name)
        return copy.deepcopy(self._existing(kind, namespace, name))

    async def create(self, kind: Kind, document: Mapping[str, Any]) -> dict[str, Any]:
        """As the real one."""
        metadata = document["metadata"]
        self._ask("create", kind, metadata["name"])
        key = (kind.kind, metadata.get("namespace", ""), metadata["name"])
        if key in self.objects:
            raise AlreadyExists("create", kind.plural, 409, "exists")
        return self._store(key, document)

    async def replace(self, kind: Kind, document: Mapping[str, Any]) -> dict[str, Any]:
        """As the real one."""
        metadata = document["metadata"]
        self._ask("replace", kind, metadata["name"])
        existing = self._existing(kind, metadata.get("namespace", ""), metadata["name"])
        if (
            metadata.get("resourceVersion", existing["metadata"]["resourceVersion"])
            != (existing["metadata"]["resourceVersion"])
        ):
            raise Conflict("update", kind.plural, 409, "changed")
        return self._store((kind.kind, metadata.get("namespace", ""), metadata["name"]), document)

    async def delete(
        self, kind: Kind, name: str, *, namespace: str = "", uid: str = "", version: str = ""
    ) -> None:
        """As the real one."""
        self._ask("delete", kind, name)
        existing = self._existing(kind, namespace, name)["metadata"]
        if (uid, version) != (existing["uid"], existing["resourceVersion"]):
            raise Conflict("delete", kind.plural, 409, "changed")
        del self.objects[kind.kind, namespace, name]

    async def patch(self, kind: Kind, name: str, patch: Mapping[str, Any]) -> dict[str, Any]:
        """As the real one, for labels of an object in cluster scope at a version."""
        self._ask("patch", kind, name)
        existing = self._existing(kind, "", name)
        metadata = existing["metadata"]
        if patch["metadata"]["resourceVersion"] != metadata["resourceVersion"]:
            raise Conflict("patch", kind.plural, 409, "changed")
        labels = {**metadata.get("labels", {}), **patch["metadata"]["labels"]}
        labels = {key: value for key, value in labels.items() if value is not None}
        return self._store((kind.kind, "", name), {**existing, "metadata": {**metadata, "labels": labels}})

    async def list(self, kind: Kind, *, namespace: str = "") -> tuple[list[dict[str, Any]], str]:
        """As the real one, of one namespace or of all."""
        self._ask("list", kind, namespace)
        found = [one for key, one in self.of(kind).items() if namespace in {"", key[0]}]
        return copy.deepcopy(found), str(self._version)

    async def names(self, kind: Kind, *, labels: str = "") -> Listing:
        """As the real one; *labels* is the name of one that must be there."""
        self._ask("names", kind, "")
        found = [
            ObjectName(key[1], key[0], one["metadata"]["uid"], one["metadata"]["resourceVersion"])
            for key, one in self.of(kind).items()
            if not labels or labels in one["metadata"].get("labels", {})
        ]
        return Listing(str(self._version), found)

    def _ask(self, verb: str, kind: Kind, name: str) -> None:
        self.asked.append(f"{verb} {kind.kind} {name}")
        if self.failing is not None:
            raise self.failing

    def _existing(self, kind: Kind, namespace: str, name: str) -> dict[str, Any]:
        existing = self.objects.get((kind.kind, namespace, name))
        if existing is None:
            raise NotFound("get", f"{kind.plural} {name}", 404, "not found")
        return existing

    def _store(self, key: tuple[str, str, str], document: Mapping[str, Any]) -> dict[str, Any]:
        self._version += 1
        stored = copy.deepcopy(dict(document))
        uid = self.objects.get(key, {}).get("metadata", {}).get("uid", f"uid-{self._version}")
        stored["metadata"] |= {"resourceVersion": str(self._version), "uid": uid}
        self.objects[key] = stored
        return copy.deepcopy(stored)
