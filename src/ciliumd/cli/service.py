# SPDX-License-Identifier: Apache-2.0
"""
``cilium service``: frontends and their backends as the datapath has them.

Consumed, as Cilium's ``models.Service``, from ``GET /v1/service`` (a list) and ``GET /v1/service/{id}``::

    {spec: S, status: {realized: S}}
    S = {id, frontend-address: {ip, port, protocol, scope},
         flags: {name, namespace, type, trafficPolicy, extTrafficPolicy, intTrafficPolicy, natPolicy},
         backend-addresses: [{ip, port, protocol, state, nodeName}]}
"""

import argparse
from collections.abc import Iterable, Iterator
from typing import Any

from ciliumd.cli.arguments import Commands, client, command, group
from ciliumd.cli.errors import OK
from ciliumd.cli.output import emit, table
from ciliumd.model.net import host_port

Json = dict[str, Any]


def register(commands: Commands) -> None:
    """Add ``service``."""
    verbs = group(commands, "service", "Manage services & loadbalancers")
    command(verbs, "list", "List services", run_list, aliases=("ls",))
    get = command(verbs, "get", "Display service information", run_get)
    get.add_argument("id", type=int, metavar="ID")


def run_list(arguments: argparse.Namespace) -> int:
    """Print the table of services."""
    services = sorted(client(arguments).get("service"), key=lambda service: int(service["spec"]["id"]))
    emit(services, arguments.output, _table(services))
    return OK


def run_get(arguments: argparse.Namespace) -> int:
    """Print one service."""
    service = client(arguments).get(f"service/{arguments.id}")
    emit(service, arguments.output, _table([service]))
    return OK


def _address(address: Json) -> str:
    """``10.96.0.10:53/UDP``, the protocol if it is known."""
    text = host_port(address["ip"], address["port"])
    protocol = address.get("protocol", "")
    return f"{text}/{protocol}" if protocol and protocol != "NONE" else text


def _table(services: Iterable[Json]) -> str:
    return table([("ID", "Frontend", "Service Type", "Backend"), *_rows(services)])


def _rows(services: Iterable[Json]) -> Iterator[tuple[object, ...]]:
    for service in services:
        realized = (service.get("status") or {}).get("realized") or {}
        backends = [
            f"{number} => {_address(backend)} ({backend.get('state', 'active')})"
            for number, backend in enumerate(realized.get("backend-addresses") or (), 1)
        ]
        frontend = _address(service["spec"]["frontend-address"])
        if service["spec"]["frontend-address"].get("scope") == "internal":
            frontend += "/i"
        kind = (service["spec"].get("flags") or {}).get("type", "")
        yield (service["spec"]["id"], frontend, kind, backends[0] if backends else "")
        for backend in backends[1:]:
            yield ("", "", "", backend)
