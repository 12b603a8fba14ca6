# SPDX-License-Identifier: Apache-2.0
"""
``cilium bpf``: the datapath's maps as the kernel holds them.

Consumed: ``GET /v1/map/{name}``, rows as ``ciliumd.flows.maprows`` decodes them.  Text is made in
``bpf_rows``; here is which maps a command reads.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, Final

from ciliumd.cli import bpf_rows
from ciliumd.cli.arguments import Commands, client, command, group
from ciliumd.cli.client import Client
from ciliumd.cli.endpoint import find
from ciliumd.cli.errors import OK, USAGE, CommandError, NotFoundError
from ciliumd.cli.output import emit, note, table

Json = dict[str, Any]
Lines = dict[str, list[str]]

IPCACHE: Final = ("cilium_ipcache_v1", "cilium_ipcache_lpm_v1")


def register(commands: Commands) -> None:
    """Add ``bpf``."""
    kinds = group(commands, "bpf", "Direct access to local BPF maps")
    endpoint = group(kinds, "endpoint", "Local endpoint map")
    command(endpoint, "list", "List local endpoint entries", run_endpoints, aliases=("ls",))
    ipcache = group(kinds, "ipcache", "Identity by address")
    command(ipcache, "list", "List addresses, their identities and tunnels", run_ipcache, aliases=("ls",))
    get = command(ipcache, "get", "Retrieve the identity of an address", run_ipcache_get)
    get.add_argument("address", metavar="ADDRESS")
    tunnel = group(kinds, "tunnel", "Remote prefixes and their nodes")
    command(tunnel, "list", "List tunnel endpoint entries", run_tunnels, aliases=("ls",))
    lb = command(
        group(kinds, "lb", "Load-balancing configuration"), "list", "List services", run_lb, aliases=("ls",)
    )
    what = lb.add_mutually_exclusive_group()
    for name in ("frontends", "backends", "revnat"):
        what.add_argument(f"--{name}", dest="what", action="store_const", const=name, default="services")
    ct = group(kinds, "ct", "Connection tracking")
    listing = command(ct, "list", "List connections", run_ct, aliases=("ls",))
    flush = command(ct, "flush", "Forget all connections", run_ct_flush, output=False)
    for verb in (listing, flush):
        verb.add_argument("scope", nargs="?", choices=["global"], default="global")
    nat = group(kinds, "nat", "Masquerading")
    command(nat, "list", "List NAT mappings", run_nat, aliases=("ls",))
    command(nat, "flush", "Forget all NAT mappings", run_nat_flush, output=False)
    metrics = group(kinds, "metrics", "Datapath traffic metrics")
    command(metrics, "list", "List packets and bytes by reason", run_metrics, aliases=("ls",))
    policy = group(kinds, "policy", "Policy maps")
    for name, aliases in (("get", ()), ("list", ("ls",))):
        verb = command(policy, name, "List the policy rows of an endpoint", run_policy, aliases=aliases)
        verb.add_argument("endpoint", nargs="?", metavar="ENDPOINT")
        verb.add_argument("--all", action="store_true", help="of every endpoint")
        verb.add_argument("-n", "--numeric", action="store_true", help="identities as numbers")


def run_endpoints(arguments: argparse.Namespace) -> int:
    """Addresses of local endpoints and of the node."""
    agent = client(arguments)
    slots = {row["key"]["slot"]: row["value"] for row in _rows(agent, "cilium_endpoints_v1")}
    lines = bpf_rows.endpoint_lines(_rows(agent, "cilium_lxc_v1"), slots)
    return _emit_lines(arguments, lines, ("IP ADDRESS", "LOCAL ENDPOINT INFO"))


def run_ipcache(arguments: argparse.Namespace) -> int:
    """Addresses and prefixes with their identities."""
    lines = bpf_rows.ipcache_lines(_ipcache(client(arguments)))
    return _emit_lines(arguments, lines, ("IP PREFIX/ADDRESS", "IDENTITY"))


def run_ipcache_get(arguments: argparse.Namespace) -> int:
    """The identity of one address, by the longest prefix."""
    try:
        found = bpf_rows.ipcache_lookup(_ipcache(client(arguments)), arguments.address)
    except ValueError as error:
        raise CommandError(str(error), hint="example: cilium bpf ipcache get 10.0.0.1", code=USAGE) from error
    if found is None:
        raise NotFoundError(f"{arguments.address} maps to no identity", hint="cilium bpf ipcache list")
    tunnel = found["value"]["tunnel_endpoint"] or "0.0.0.0"  # noqa: S104 - how Cilium spells "none"
    value = found["value"]
    text = f"{arguments.address} maps to identity {value['identity']} {value['encrypt_key']} {tunnel}\n"
    emit(found, arguments.output, text)
    return OK


def run_tunnels(arguments: argparse.Namespace) -> int:
    """Remote prefixes that are reached through a tunnel."""
    lines = bpf_rows.tunnel_lines(_rows(client(arguments), "cilium_ipcache_lpm_v1"))
    return _emit_lines(arguments, lines, ("TUNNEL", "VALUE"))


def run_lb(arguments: argparse.Namespace) -> int:
    """Services with backends, or one of the maps they are made of."""
    agent = client(arguments)
    match arguments.what:
        case "revnat":
            lines = bpf_rows.revnat_lines(_rows(agent, "cilium_lb_revnat_v1"))
            titles = ("ID", "BACKEND ADDRESS (REVNAT_ID) (SLOT)")
        case "backends":
            lines = bpf_rows.backend_lines(_rows(agent, "cilium_lb_backends_v1"))
            titles = ("ID", "BACKEND ADDRESS (REVNAT_ID) (SLOT)")
        case "frontends":
            lines = bpf_rows.frontend_lines(_rows(agent, "cilium_lb_services_v1"))
            titles = ("SERVICE ADDRESS", "BACKEND ID")
        case _:
            backends = {row["key"]["id"]: row["value"] for row in _rows(agent, "cilium_lb_backends_v1")}
            lines = bpf_rows.service_lines(_rows(agent, "cilium_lb_services_v1"), backends)
            titles = ("SERVICE ADDRESS", "BACKEND ADDRESS (REVNAT_ID) (SLOT)")
    return _emit_lines(arguments, lines, titles)


def run_ct(arguments: argparse.Namespace) -> int:
    """Tracked connections."""
    return _emit_text(arguments, _rows(client(arguments), "cilium_ct_v1"), bpf_rows.ct_line)


def run_ct_flush(arguments: argparse.Namespace) -> int:
    """Forget all connections: packets of those that live on are judged anew."""
    answer = client(arguments).delete("map/cilium_ct_v1")
    print(f"Flushed {answer['deleted']} entries from cilium_ct_v1")
    return OK


def run_nat_flush(arguments: argparse.Namespace) -> int:
    """Forget all NAT mappings: flows that live on get others, which their peers may refuse."""
    answer = client(arguments).delete("map/cilium_snat_v1")
    print(f"Flushed {answer['deleted']} entries from cilium_snat_v1")
    return OK


def run_nat(arguments: argparse.Namespace) -> int:
    """Masqueraded flows in both directions."""
    # Stamps are of the clock this machine shares with its kernel.
    now = int(time.clock_gettime(time.CLOCK_MONOTONIC))
    rows = _rows(client(arguments), "cilium_snat_v1")
    return _emit_text(arguments, rows, lambda row: bpf_rows.nat_line(row, now))


def run_metrics(arguments: argparse.Namespace) -> int:
    """Packets and bytes by reason and direction."""
    rows = [
        {
            "reason": row["key"]["reason_text"],
            "direction": row["key"]["direction"],
            "packets": row["value"]["packets"],
            "bytes": row["value"]["bytes"],
        }
        for row in _rows(client(arguments), "cilium_metrics_v1")
    ]
    rows.sort(key=lambda row: (row["reason"], row["direction"]))
    lines = [(row["reason"], row["direction"].upper(), row["packets"], row["bytes"]) for row in rows]
    emit(rows, arguments.output, table([("REASON", "DIRECTION", "PACKETS", "BYTES"), *lines]))
    return OK


def run_policy(arguments: argparse.Namespace) -> int:
    """Policy rows of one endpoint, or of all when none is named."""
    agent = client(arguments)
    if arguments.endpoint and arguments.all:
        raise CommandError("name one endpoint, or use --all", hint="cilium endpoint list", code=USAGE)
    wanted = find(agent, arguments.endpoint)["id"] if arguments.endpoint else None
    states = {row["key"]["slot"]: row["value"] for row in _rows(agent, "cilium_endpoint_state_v1")}
    versions = {
        row["value"]["id"]: states[row["key"]["slot"]]["policy_version"]
        for row in _rows(agent, "cilium_endpoints_v1")
        if row["key"]["slot"] in states and wanted in (None, row["value"]["id"])
    }
    if wanted is not None and not versions:
        raise CommandError(
            f"endpoint {wanted} is not in the datapath yet", hint="cilium endpoint list shows its state"
        )
    names = bpf_rows.PolicyNames(
        labels={row["id"]: sorted(row["labels"]) for row in agent.get("identity")},
        origins=agent.get("policy").get("rule-cookies") or {},
        numeric=arguments.numeric,
    )
    rules, classes = _rows(agent, "cilium_policy_rules_v1"), _rows(agent, "cilium_policy_classes_v1")
    contents = {
        endpoint: bpf_rows.policy_entries(version, rules, classes)
        for endpoint, version in sorted(versions.items())
    }
    data: Any = contents[wanted] if wanted is not None else contents
    emit(data, arguments.output, _policy_text(contents, names, alone=wanted is not None))
    return OK


def _policy_text(contents: dict[int, list[Json]], names: bpf_rows.PolicyNames, *, alone: bool) -> str:
    blocks = []
    for endpoint, entries in contents.items():
        head = "" if alone else f"Endpoint ID: {endpoint}\n\n"
        blocks.append(head + table(bpf_rows.policy_table(entries, names)))
    return "\n\n".join(blocks)


def _ipcache(agent: Client) -> list[Json]:
    return [row for name in IPCACHE for row in _rows(agent, name)]


def _rows(agent: Client, name: str) -> list[Json]:
    rows: list[Json] = agent.get(f"map/{name}")
    return rows


def _emit_lines(arguments: argparse.Namespace, lines: Lines, titles: tuple[str, str]) -> int:
    if not lines:
        note("No entries found.")
    rows = [
        (key if number == 0 else "", value)
        for key, values in lines.items()
        for number, value in enumerate(values)
    ]
    emit(lines, arguments.output, table([titles, *rows]) if rows else "")
    return OK


def _emit_text(arguments: argparse.Namespace, rows: list[Json], line: Callable[[Json], str]) -> int:
    if not rows:
        note("No entries found.")
    emit(rows, arguments.output, "".join(f"{text}\n" for text in sorted(map(line, rows))))
    return OK
