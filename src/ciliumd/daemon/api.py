# SPDX-License-Identifier: Apache-2.0
"""
The agent's REST interface on a unix socket: paths and models as in Cilium's ``api/v1``.

Requests are checked here, answered by the parts of the agent, and never touch a map themselves.
"""

import json
import os
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar

import structlog
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ciliumd.flows.filter import FlowFilter, parse_types
from ciliumd.flows.ring import FlowRing
from ciliumd.flows.wire import to_json

Json = dict[str, Any]

SOCKET_MODE = 0o660
LARGEST_DIFF = 16 << 20
Body = TypeVar("Body", bound=BaseModel)

log = structlog.get_logger("api")


class RequestRefused(Exception):
    """A request that cannot be served; *status* is the HTTP status, the text says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class EndpointRequest(BaseModel):
    """Body of ``PUT /v1/endpoint``: make the network namespace at *netns* the pod *pod*."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    netns: str = Field(min_length=1)
    pod: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    ip: IPv4Address | None = None
    ip6: IPv6Address | None = None
    ifname: str = Field(default="eth0", pattern=r"^[^\s/]{1,15}$")
    container_id: str = Field(default="", alias="container-id", max_length=255)


ENABLED: Final = "Enabled"
Switch = Literal["Enabled", "Disabled"]


class EndpointOptions(BaseModel):
    """Options of an endpoint; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid")

    audit: Switch | None = Field(default=None, alias="PolicyAuditMode")


class EndpointConfiguration(BaseModel):
    """Body of ``PATCH /v1/endpoint/{id}/config``, Cilium's ``models.EndpointConfigurationSpec``."""

    model_config = ConfigDict(extra="forbid")

    options: EndpointOptions = EndpointOptions()


class NodeOptions(BaseModel):
    """Options of the node, by their names; those that are left out stay as they are."""

    model_config = ConfigDict(extra="forbid")

    drop: Switch | None = Field(default=None, alias="DropNotification")
    policy_verdict: Switch | None = Field(default=None, alias="PolicyVerdictNotification")
    trace: Switch | None = Field(default=None, alias="TraceNotification")


class NodeConfiguration(BaseModel):
    """Body of ``PATCH /v1/config``, Cilium's ``models.DaemonConfigurationSpec``."""

    model_config = ConfigDict(extra="forbid")

    options: NodeOptions = NodeOptions()


class DiffRequest(BaseModel):
    """
    Body of ``POST /v1/policy/diff``: objects as they are to be written, and policies to be taken away.

    A policy is named as explanations and events do: ``cnp:NAMESPACE/NAME``.
    """

    model_config = ConfigDict(extra="forbid")

    documents: list[Any] = Field(default_factory=list)
    delete: list[str] = Field(default_factory=list)


class Backend(Protocol):
    """What the agent offers; every answer is JSON as the CLI's modules document it."""

    ring: FlowRing

    async def health(self) -> Json:
        """``models.StatusResponse``."""

    def endpoints(self) -> list[Json]:
        """Every ``models.Endpoint``."""

    async def add_endpoint(self, request: EndpointRequest) -> Json:
        """Make a pod; RequestRefused when it cannot be."""

    async def delete_endpoint(self, number: int) -> None:
        """Take a pod away."""

    async def configure_endpoint(self, number: int, options: EndpointOptions) -> None:
        """Set options of an endpoint; RequestRefused when they cannot be."""

    def endpoint_number(self, key: str) -> int | None:
        """Endpoint id by number or ``pod:namespace/name``."""

    def identities(self) -> list[Json]:
        """Every ``models.Identity``."""

    async def services(self) -> list[Json]:
        """Every ``models.Service``."""

    def policy(self) -> Json:
        """Policies in force and refused."""

    def selectors(self) -> list[Json]:
        """``models.SelectorCache``: whom the peers of the rules in force select."""

    def explain(self, source: str, destination: str, dport: str) -> Json:
        """Whether traffic passes, and why."""

    async def policy_diff(self, documents: list[Any], delete: list[str]) -> Json:
        """Which recorded flows would fare otherwise; RequestRefused for what cannot be judged."""

    async def map_rows(self, name: str) -> list[Json]:
        """Decoded rows of a live map."""

    async def maps(self) -> Json:
        """Every map and how full it is."""

    async def flush_map(self, name: str) -> int:
        """Empty a map that fills again by itself; how many rows it had.  RequestRefused for any other."""

    def node_health(self) -> Json:
        """``models.HealthStatusResponse``: how the other nodes answered when last asked."""

    async def probe_nodes(self) -> Json:
        """The same of a round made now."""

    def cluster_nodes(self) -> Json:
        """``models.ClusterNodeStatus``."""

    def config(self) -> Json:
        """Settings in force."""

    def configure(self, options: Mapping[str, bool]) -> None:
        """Set options of the node until the agent's next start."""

    def metrics(self) -> list[Json]:
        """Every sample."""


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refusals and bad requests become JSON with a message; anything else is a bug and is logged."""
    try:
        return await handler(request)
    except RequestRefused as refused:
        return web.json_response({"message": str(refused)}, status=refused.status)
    except web.HTTPException as error:
        return web.json_response({"message": f"{request.path}: {error.reason}"}, status=error.status)
    except Exception:
        log.exception("api.request_failed", path=request.path)
        return web.json_response({"message": "internal error, see the agent's log"}, status=500)


async def _body(request: web.Request, model: type[Body], what: str) -> Body:
    """The body of a request.  RequestRefused when it is no *model*, by field."""
    try:
        return model.model_validate_json(await request.read())
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise RequestRefused(400, f"bad {what}: {'; '.join(lines)}") from error


class Api:
    """The server; :meth:`start` listens, :meth:`stop` ends it."""

    def __init__(self, backend: Backend, socket: Path) -> None:
        self._backend = backend
        self._socket = socket
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen on the socket, which only root and its group may use."""
        app = web.Application(middlewares=[_errors])
        routes: list[tuple[str, str, Handler]] = [
            ("GET", "/v1/healthz", self._health),
            ("GET", "/v1/endpoint", self._endpoints),
            ("PUT", "/v1/endpoint", self._add_endpoint),
            ("GET", "/v1/endpoint/{key}", self._endpoint),
            ("DELETE", "/v1/endpoint/{key}", self._delete_endpoint),
            ("GET", "/v1/endpoint/{key}/config", self._endpoint_config),
            ("PATCH", "/v1/endpoint/{key}/config", self._configure_endpoint),
            ("GET", "/v1/identity", self._identities),
            ("GET", "/v1/service", self._services),
            ("GET", "/v1/service/{id}", self._service),
            ("GET", "/v1/policy", self._policy),
            ("GET", "/v1/policy/explain", self._explain),
            ("GET", "/v1/policy/selectors", self._selectors),
            ("POST", "/v1/policy/diff", self._policy_diff),
            ("GET", "/v1/map", self._maps),
            ("GET", "/v1/map/{name}", self._map),
            ("DELETE", "/v1/map/{name}", self._flush_map),
            ("GET", "/v1/health", self._node_health),
            ("PUT", "/v1/health/probe", self._probe_nodes),
            ("GET", "/v1/cluster/nodes", self._cluster_nodes),
            ("GET", "/v1/config", self._config),
            ("PATCH", "/v1/config", self._configure),
            ("GET", "/v1/metrics", self._metrics),
            ("GET", "/v1/monitor", self._monitor),
        ]
        for method, path, handler in routes:
            app.router.add_route(method, path, handler)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
        await self._runner.setup()
        self._socket.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._socket.unlink(missing_ok=True)
        before = os.umask(0o777 & ~SOCKET_MODE)
        try:
            await web.UnixSite(self._runner, str(self._socket)).start()
        finally:
            os.umask(before)

    async def stop(self) -> None:
        """Stop listening and remove the socket."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._socket.unlink(missing_ok=True)

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response(await self._backend.health())

    async def _endpoints(self, _: web.Request) -> web.Response:
        return web.json_response(self._backend.endpoints())

    async def _add_endpoint(self, request: web.Request) -> web.Response:
        body = await _body(request, EndpointRequest, "endpoint request")
        return web.json_response(await self._backend.add_endpoint(body), status=201)

    def _number(self, request: web.Request) -> int:
        key = request.match_info["key"]
        number = self._backend.endpoint_number(key)
        if number is None:
            raise RequestRefused(404, f"no endpoint {key}")
        return number

    async def _endpoint(self, request: web.Request) -> web.Response:
        number = self._number(request)
        return web.json_response(self._one_endpoint(number))

    def _one_endpoint(self, number: int) -> Json:
        return next(one for one in self._backend.endpoints() if one["id"] == number)

    async def _endpoint_config(self, request: web.Request) -> web.Response:
        endpoint = self._one_endpoint(self._number(request))
        return web.json_response({"realized": endpoint["status"]["realized"]})

    async def _configure_endpoint(self, request: web.Request) -> web.Response:
        number = self._number(request)
        body = await _body(request, EndpointConfiguration, "endpoint configuration")
        await self._backend.configure_endpoint(number, body.options)
        return web.json_response({})

    async def _delete_endpoint(self, request: web.Request) -> web.Response:
        await self._backend.delete_endpoint(self._number(request))
        return web.json_response({})

    async def _identities(self, _: web.Request) -> web.Response:
        return web.json_response(self._backend.identities())

    async def _services(self, _: web.Request) -> web.Response:
        return web.json_response(await self._backend.services())

    async def _service(self, request: web.Request) -> web.Response:
        number = request.match_info["id"]
        for service in await self._backend.services():
            if str(service["spec"]["id"]) == number:
                return web.json_response(service)
        raise RequestRefused(404, f"no service {number}")

    async def _policy(self, _: web.Request) -> web.Response:
        return web.json_response(self._backend.policy())

    async def _selectors(self, _: web.Request) -> web.Response:
        return web.json_response(self._backend.selectors())

    async def _explain(self, request: web.Request) -> web.Response:
        missing = [name for name in ("from", "to", "dport") if name not in request.query]
        if missing:
            raise RequestRefused(400, f"missing {', '.join(missing)}")
        query = request.query
        return web.json_response(self._backend.explain(query["from"], query["to"], query["dport"]))

    async def _policy_diff(self, request: web.Request) -> web.Response:
        # A file of policies may be larger than any other request.
        body = await _body(request.clone(client_max_size=LARGEST_DIFF), DiffRequest, "diff request")
        return web.json_response(await self._backend.policy_diff(body.documents, body.delete))

    async def _maps(self, _: web.Request) -> web.Response:
        return web.json_response(await self._backend.maps())

    async def _map(self, request: web.Request) -> web.Response:
        return web.json_response(await self._backend.map_rows(request.match_info["name"]))

    async def _flush_map(self, request: web.Request) -> web.Response:
        return web.json_response({"deleted": await self._backend.flush_map(request.match_info["name"])})

    async def _node_health(self, _: web.Request) -> web.Response:
        return web.json_response(self._backend.node_health())

    async def _probe_nodes(self, _: web.Request) -> web.Response:
        return web.json_response(await self._backend.probe_nodes())

    async def _cluster_nodes(self, _: web.Request) -> web.Response:
        return web.json_response(self._backend.cluster_nodes())

    async def _config(self, _: web.Request) -> web.Response:
        return web.json_response(self._backend.config())

    async def _configure(self, request: web.Request) -> web.Response:
        body = await _body(request, NodeConfiguration, "configuration")
        options = body.options.model_dump(by_alias=True, exclude_none=True)
        self._backend.configure({name: value == ENABLED for name, value in options.items()})
        return web.json_response({})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.json_response(self._backend.metrics())

    async def _monitor(self, request: web.Request) -> web.StreamResponse:
        """Flows as they happen, one JSON document per line, until the client goes away."""
        try:
            types = parse_types(request.query.getall("type", []))
        except ValueError as error:
            raise RequestRefused(400, str(error)) from error
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        with self._backend.ring.subscribe(FlowFilter(types=types)) as subscription:
            async for item in subscription:
                try:
                    await response.write(json.dumps(to_json(item)).encode() + b"\n")
                except (ConnectionError, OSError):
                    break
        return response
