# SPDX-License-Identifier: Apache-2.0
"""
Requests to the API server: objects are plain dictionaries, errors tell what the caller can do about them.

Configuration, certificates and the token (read again when it is refused) are lightkube's; so is the
connection.  What passes in a moment (no connection, 429, 5xx) is tried again a few times; everything is
paced.  An event loop's own: one :class:`Api` per loop.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import httpx2 as httpx
import msgspec
from lightkube.config import client_adapter
from lightkube.config.kubeconfig import SingleConfig
from lightkube.core.exceptions import ConfigError

from ciliumd.kubernetes.config import ssl_context
from ciliumd.kubernetes.errors import ApiError, Unreachable, error_of, retry_after
from ciliumd.kubernetes.kinds import Kind
from ciliumd.kubernetes.pace import Backoff, Pace

Json = dict[str, Any]

ATTEMPTS: Final = 4
SECONDS: Final = 10.0
CHUNK: Final = 500
_METADATA = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
_PATCHES = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}

Observe = Callable[[str, str, int, float], None]
"""Told of each request: method, path without names, status (0: none came), seconds."""


class ObjectName(msgspec.Struct, gc=False, rename="camel"):
    """What identifies a version of an object."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""


class _Item(msgspec.Struct, gc=False):
    metadata: ObjectName


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class _MetadataList(msgspec.Struct):
    metadata: _ListMeta
    items: list[_Item] | None


@dataclass(frozen=True, slots=True)
class Listing:
    """All objects of a kind as they were at *version*, by name only."""

    version: str
    objects: list[ObjectName]


def _nobody(_method: str, _path: str, _status: int, _seconds: float) -> None:
    """Nobody counts."""


class _Parameters(client_adapter.ConnectionParams):
    """Trust as in ``config``."""

    def httpx_params(self, config: SingleConfig) -> Json:
        """Arguments of the HTTP client."""
        return {**super().httpx_params(config), "verify": ssl_context(config)}


class Api:
    """The API server of *config*.  A context manager; *observe* is told of every request."""

    def __init__(
        self,
        config: SingleConfig,
        *,
        pace: Pace | None = None,
        observe: Observe = _nobody,
        attempts: int = ATTEMPTS,
        timeout: float = SECONDS,
    ) -> None:
        self.server = config.cluster.server
        self._pace = pace or Pace()
        self._observe = observe
        self._attempts = attempts
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # it would tell of every request
        parameters = _Parameters(timeout=httpx.Timeout(timeout), trust_env=False)
        self._http = client_adapter.AsyncClient(config, parameters)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def version(self) -> str:
        """The server's version, like ``v1.34.4``."""
        answer = await self._request("get", "GET", "/version", "/version", "version")
        return str(_object(answer).get("gitVersion", ""))

    async def get(self, kind: Kind, name: str, *, namespace: str = "") -> Json:
        """An object.  Raises NotFound."""
        return await self._one("get", "GET", kind, name, namespace=namespace)

    async def list(
        self, kind: Kind, *, namespace: str = "", labels: str = "", fields: str = ""
    ) -> tuple[list[Json], str]:
        """The objects that selectors *labels* and *fields* select, and the version they were read at."""
        items: list[Json] = []
        params = _selectors(labels=labels, fields=fields)
        while True:
            path, template = kind.path(namespace=namespace), kind.template(one=False)
            answer = _object(await self._request("list", "GET", path, template, kind.plural, params=params))
            items += answer.get("items") or ()
            metadata = answer.get("metadata") or {}
            if not metadata.get("continue"):
                return items, metadata.get("resourceVersion", "")
            params["continue"] = metadata["continue"]

    async def names(self, kind: Kind, *, labels: str = "", fields: str = "") -> Listing:
        """Which objects there are, in all namespaces, as of now: consistent, and without their bodies."""
        objects: list[ObjectName] = []
        params = _selectors(labels=labels, fields=fields)
        while True:
            answer = await self._request(
                "list",
                "GET",
                kind.path(),
                kind.template(one=False),
                kind.plural,
                params=params,
                headers={"Accept": _METADATA},
            )
            try:
                page = msgspec.json.decode(answer, type=_MetadataList)
            except msgspec.DecodeError as error:
                raise Unreachable("list", kind.plural, 0, f"answer is not understood: {error}") from error
            objects += [item.metadata for item in page.items or ()]
            if not page.metadata.continue_:
                return Listing(page.metadata.resource_version, objects)
            params["continue"] = page.metadata.continue_

    async def create(self, kind: Kind, document: Mapping[str, Any]) -> Json:
        """The object as it was created.  Raises AlreadyExists."""
        namespace = _namespace_of(document)
        path, template = kind.path(namespace=namespace), kind.template(one=False)
        return _object(
            await self._request(
                "create", "POST", path, template, _named(kind, _name_of(document), namespace), body=document
            )
        )

    async def replace(self, kind: Kind, document: Mapping[str, Any], *, subresource: str = "") -> Json:
        """
        The object as it is now.

        Raises Conflict if it is not the version that *document* names in ``metadata.resourceVersion``.
        """
        return await self._one(
            "update",
            "PUT",
            kind,
            _name_of(document),
            namespace=_namespace_of(document),
            subresource=subresource,
            body=document,
        )

    async def patch(
        self,
        kind: Kind,
        name: str,
        patch: Mapping[str, Any] | Sequence[Json],
        *,
        namespace: str = "",
        subresource: str = "",
    ) -> Json:
        """The object after a merge patch (RFC 7386), or after a JSON patch (RFC 6902) if it is a list."""
        content = _PATCHES["merge" if isinstance(patch, Mapping) else "json"]
        return await self._one(
            "patch",
            "PATCH",
            kind,
            name,
            namespace=namespace,
            subresource=subresource,
            body=patch,
            headers={"Content-Type": content},
        )

    async def apply(
        self, kind: Kind, document: Mapping[str, Any], *, manager: str, subresource: str = ""
    ) -> Json:
        """The object once it has the fields of *document* (KEP-555), whoever else owned them."""
        return await self._one(
            "patch",
            "PATCH",
            kind,
            _name_of(document),
            namespace=_namespace_of(document),
            subresource=subresource,
            body=document,
            params={"fieldManager": manager, "force": "true"},
            headers={"Content-Type": _PATCHES["apply"]},
        )

    async def delete(
        self, kind: Kind, name: str, *, namespace: str = "", uid: str = "", version: str = ""
    ) -> None:
        """
        Delete an object: if *uid* and *version* are given, that one only, as it was then.

        Raises NotFound, or Conflict when it is another one.
        """
        conditions = {key: value for key, value in (("uid", uid), ("resourceVersion", version)) if value}
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": conditions}
        await self._one("delete", "DELETE", kind, name, namespace=namespace, body=body)

    async def _one(
        self,
        verb: str,
        method: str,
        kind: Kind,
        name: str,
        *,
        namespace: str,
        subresource: str = "",
        **rest: Any,
    ) -> Json:
        path = kind.path(name, namespace=namespace, subresource=subresource)
        template = kind.template(one=True, subresource=subresource)
        shown = _named(kind, name, namespace, subresource)
        return _object(await self._request(verb, method, path, template, shown, **rest))

    async def _request(
        self,
        verb: str,
        method: str,
        path: str,
        template: str,
        shown: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> bytes:
        """The answer's bytes; ApiError after the last attempt."""
        content = None if body is None else msgspec.json.encode(body)
        sent = {"Content-Type": "application/json", "Accept": "application/json", **(headers or {})}
        backoff = iter(Backoff())
        attempt = 1
        while True:
            await asyncio.sleep(self._pace.reserve())
            began = time.monotonic()
            wait = next(backoff)
            try:
                answer = await self._http.request(method, path, params=params, headers=sent, content=content)
            except (httpx.HTTPError, ConfigError) as error:
                self._observe(method, template, 0, time.monotonic() - began)
                problem: ApiError = Unreachable(verb, shown, 0, str(error) or type(error).__name__)
            else:
                self._observe(method, template, answer.status_code, time.monotonic() - began)
                if answer.is_success:
                    return answer.content
                problem = error_of(verb, shown, answer)
                wait = max(wait, retry_after(answer))
            if not isinstance(problem, Unreachable):
                raise problem
            self._pace.slow_down()
            if attempt == self._attempts:
                raise problem
            attempt += 1
            await asyncio.sleep(wait)


def _object(answer: bytes) -> Json:
    try:
        return msgspec.json.decode(answer, type=Json)
    except msgspec.DecodeError as error:
        raise Unreachable("read", "answer", 0, f"is not understood: {error}") from error


def _selectors(*, labels: str = "", fields: str = "") -> dict[str, str]:
    wanted = {"limit": str(CHUNK), "labelSelector": labels, "fieldSelector": fields}
    return {key: value for key, value in wanted.items() if value}


def _name_of(document: Mapping[str, Any]) -> str:
    return str(document["metadata"]["name"])


def _namespace_of(document: Mapping[str, Any]) -> str:
    return str(document["metadata"].get("namespace") or "")


def _named(kind: Kind, name: str, namespace: str, subresource: str = "") -> str:
    """``pods shop/web``, ``ciliumnodes/status n1``."""
    resource = f"{kind.plural}/{subresource}" if subresource else kind.plural
    return f"{resource} {namespace}/{name}" if namespace else f"{resource} {name}"
