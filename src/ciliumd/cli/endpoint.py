# SPDX-License-Identifier: Apache-2.0
"""
``cilium endpoint``: the pods of this node.

Consumed, as Cilium's ``models.Endpoint``, from ``GET /v1/endpoint`` (a list)::

    {id, status: {state, identity: {id, labels}, labels: {security-relevant: [text]},
                  health: {overallHealth, bpf, policy: OK | Pending, connected},
                  networking: {addressing: [{ipv4, ipv6}], ...},
                  policy: {realized: {policy-enabled, policy-revision}},
                  external-identifiers: {k8s-namespace, k8s-pod-name, pod-name, container-id}}}

and from ``/v1/endpoint/{id}/config``, to read and to PATCH::

    {realized: {options: {PolicyAuditMode: Enabled | Disabled}}}

``policy-enabled`` is none, ingress, egress, both, or one of the last three after ``audit-``.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from ciliumd.cli.arguments import Commands, client, command, group
from ciliumd.cli.client import Client, segment
from ciliumd.cli.errors import OK, USAGE, CommandError, NotFoundError
from ciliumd.cli.options import switches
from ciliumd.cli.output import emit, table

Json = dict[str, Any]

_HEADERS: Final = (
    (
        "ENDPOINT",
        "POLICY (ingress)",
        "POLICY (egress)",
        "IDENTITY",
        "LABELS (source:key[=value])",
        "IPv6",
        "IPv4",
        "STATUS",
    ),
    ("", "ENFORCEMENT", "ENFORCEMENT", "", "", "", "", ""),
)
_ENFORCEMENT: Final = {
    "none": ("Disabled", "Disabled"),
    "both": ("Enabled", "Enabled"),
    "ingress": ("Enabled", "Disabled"),
    "egress": ("Disabled", "Enabled"),
    "audit-both": ("Disabled (Audit)", "Disabled (Audit)"),
    "audit-ingress": ("Disabled (Audit)", "Disabled"),
    "audit-egress": ("Disabled", "Disabled (Audit)"),
}
_OPTIONS: Final = ("PolicyAuditMode",)
_IDENTIFIERS: Final = {"pod-name": "pod-name", "container-id": "container-id"}
_ADDRESSES: Final = ("ipv4", "ipv6")


def register(commands: Commands) -> None:
    """Add ``endpoint``."""
    verbs = group(commands, "endpoint", "Manage endpoints")
    listing = command(verbs, "list", "List all endpoints", run_list, aliases=("ls",))
    listing.add_argument("--no-headers", action="store_true", help="do not print headers")
    get = command(verbs, "get", "Display endpoint information", run_get)
    get.add_argument("id", metavar="ID", help="12, pod-name:NS/POD, ipv4:ADDR, ipv6:ADDR or container-id:ID")
    for name, text, verb in (
        ("health", "View how an endpoint is doing", run_health),
        ("labels", "List the labels of an endpoint", run_labels),
    ):
        command(verbs, name, text, verb).add_argument("id", metavar="ID")
    config = command(verbs, "config", "View & modify endpoint configuration", run_config)
    config.add_argument("id", metavar="ID", help="12 or pod-name:NS/POD")
    config.add_argument("options", nargs="*", metavar="OPTION=VALUE", help="e.g. PolicyAuditMode=Enabled")
    delete = command(verbs, "delete", "Remove an endpoint", run_delete, aliases=("del",), output=False)
    delete.add_argument("id", metavar="ID", help="12 or pod-name:NS/POD")


def run_list(arguments: argparse.Namespace) -> int:
    """Print the table of endpoints."""
    endpoints = sorted(client(arguments).get("endpoint"), key=lambda endpoint: int(endpoint["id"]))
    headers = () if arguments.no_headers else _HEADERS
    emit(endpoints, arguments.output, table([*headers, *_rows(endpoints)]))
    return OK


def run_get(arguments: argparse.Namespace) -> int:
    """Print one endpoint."""
    found = [find(client(arguments), arguments.id)]
    emit(found, arguments.output, json.dumps(found, indent=2) + "\n")
    return OK


def run_health(arguments: argparse.Namespace) -> int:
    """Print whether its rows are in the maps."""
    status = find(client(arguments), arguments.id)["status"]
    health = status["health"]
    lines = [
        ("Overall Health:", health["overallHealth"]),
        ("BPF Health:", health["bpf"]),
        ("Policy Health:", health["policy"]),
        ("Connected:", "yes" if health["connected"] else "no"),
    ]
    emit(health, arguments.output, table(lines))
    return OK


def run_labels(arguments: argparse.Namespace) -> int:
    """Print its labels, one a line."""
    labels = labels_of(find(client(arguments), arguments.id))
    emit(labels, arguments.output, "".join(f"{label}\n" for label in labels))
    return OK


def run_config(arguments: argparse.Namespace) -> int:
    """Print its options, or set some."""
    agent = client(arguments)
    options = switches(arguments.options, _OPTIONS)
    number = find(agent, arguments.id)["id"]
    path = f"endpoint/{segment(number)}/config"
    if options:
        agent.patch(path, {"options": options})
        print(f"Endpoint {number} configuration updated successfully")
        return OK
    answer: Json = agent.get(path)
    emit(answer, arguments.output, table(sorted(answer["realized"]["options"].items())))
    return OK


def run_delete(arguments: argparse.Namespace) -> int:
    """Remove one endpoint."""
    agent = client(arguments)
    endpoint = find(agent, arguments.id)
    agent.delete(f"endpoint/{segment(endpoint['id'])}")
    print(f"Endpoint {endpoint['id']} removed")
    return OK


def find(agent: Client, wanted: str) -> Json:
    """The endpoint *wanted* names, by number or with a prefix."""
    prefix, separator, value = wanted.partition(":")
    if not separator:
        if not wanted.isdecimal():
            raise CommandError(f"{wanted!r} is no endpoint id", hint="cilium endpoint list", code=USAGE)
        prefix, value = "cilium-local", wanted
    if prefix == "pod":
        prefix = "pod-name"
    for endpoint in agent.get("endpoint"):
        if value in _names(endpoint, prefix):
            found: Json = endpoint
            return found
    raise NotFoundError(f"no endpoint {wanted!r} on this node", hint="cilium endpoint list")


def labels_of(endpoint: Json) -> list[str]:
    """Labels that make the identity, sorted."""
    status = endpoint.get("status") or {}
    return sorted((status.get("labels") or {}).get("security-relevant") or ())


def _names(endpoint: Json, prefix: str) -> Iterable[str]:
    status = endpoint.get("status") or {}
    if prefix == "cilium-local":
        return (str(endpoint["id"]),)
    if prefix in _ADDRESSES:
        return [pair.get(prefix, "") for pair in (status.get("networking") or {}).get("addressing") or ()]
    if prefix in _IDENTIFIERS:
        return ((status.get("external-identifiers") or {}).get(prefix, ""),)
    raise CommandError(
        f"unknown kind of endpoint id {prefix!r}",
        hint="use 12, pod-name:NS/POD, ipv4:ADDR, ipv6:ADDR or container-id:ID",
        code=USAGE,
    )


def _rows(endpoints: Iterable[Json]) -> Iterator[tuple[object, ...]]:
    for endpoint in endpoints:
        status = endpoint.get("status") or {}
        realized = (status.get("policy") or {}).get("realized") or {}
        ingress, egress = _ENFORCEMENT.get(realized.get("policy-enabled", ""), ("Unknown", "Unknown"))
        addressing = (status.get("networking") or {}).get("addressing") or [{}]
        first, *others = labels_of(endpoint) or ["no labels"]
        yield (
            endpoint["id"],
            ingress,
            egress,
            (status.get("identity") or {}).get("id", "<no label id>"),
            first,
            addressing[0].get("ipv6", ""),
            addressing[0].get("ipv4", ""),
            status.get("state", "Unknown"),
        )
        for label in others:
            yield ("", "", "", "", label, "", "", "")
