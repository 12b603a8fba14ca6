# SPDX-License-Identifier: Apache-2.0
"""
``cilium policy``: what is in force, why traffic passes or not, and waiting for a change to arrive.

Consumed::

    GET /v1/policy           {revision, policy: [{kind, namespace, name, ...}],
                              problems: [{kind, namespace, name, field, message, file?, line?}],
                              rule-cookies: {"<cookie>": [origin]}}
    GET /v1/policy/selectors [{selector, users, identities: [number], labels: [[{key, value, source}]],
                               rules: [origin]}]
    GET /v1/policy/explain   {verdict: allowed | denied, from, to, protocol, port,
                              directions: [{direction, endpoint, verdict, audited, origins: [text],
                                            row?: text, counter: {row, traffic, last-seen}}],
                              events-lost, suggestion: {documents: [object], note}}
                             verdict of a direction: allow, deny, default-deny; audited: what is denied is
                             let through all the same
    GET /v1/endpoint         status.policy.realized.policy-revision and status.state of each endpoint
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ciliumd.cli import policy_diff
from ciliumd.cli.arguments import Commands, client, command, group
from ciliumd.cli.client import Client
from ciliumd.cli.errors import FAILED, OK, USAGE, CommandError
from ciliumd.cli.output import emit, note, table
from ciliumd.cli.policy_diff import moment, problem_text

Json = dict[str, Any]

POLL_SECONDS: Final = 0.1
_SETTLED_STATES: Final = frozenset({"ready", "disconnected"})


def register(commands: Commands) -> None:
    """Add ``policy``."""
    verbs = group(commands, "policy", "Manage security policies")
    get = command(verbs, "get", "Display policies in force and those refused", run_get)
    get.add_argument("-n", "--namespace", help="only policies of this namespace")
    explain = command(verbs, "explain", "Say whether traffic passes, and which policy decides", run_explain)
    explain.add_argument(
        "--from", dest="source", required=True, metavar="WHO", help="ns/pod, address or entity"
    )
    explain.add_argument(
        "--to", dest="destination", required=True, metavar="WHO", help="ns/pod, address or entity"
    )
    explain.add_argument("--dport", "--port", required=True, metavar="PORT[/PROTO]", help="e.g. 80/TCP")
    selectors = command(verbs, "selectors", "Display whom the peers of rules in force select", run_selectors)
    selectors.add_argument("-v", "--verbose", action="store_true", help="show the full labels of policies")
    register_validate(verbs)
    policy_diff.register(verbs)
    wait = command(verbs, "wait", "Wait until all endpoints run a policy revision", run_wait, output=False)
    wait.add_argument("revision", type=int, metavar="REVISION")
    wait.add_argument("--max-wait-time", type=float, default=360, metavar="SECONDS")
    wait.add_argument("--fail-wait-time", type=float, default=0, metavar="SECONDS", help=argparse.SUPPRESS)


def register_validate(verbs: Commands) -> None:
    """Add ``validate``, which asks no agent."""
    validate = command(
        verbs, "validate", "Judge manifests as the agent does, without asking it", run_validate
    )
    validate.add_argument("files", nargs="+", type=Path, metavar="FILE", help="manifests; - is stdin")
    validate.add_argument(
        "--enable-node-selector-labels",
        action="store_true",
        dest="node_selectors",
        help="as agents do that have this option",
    )


def run_validate(arguments: argparse.Namespace) -> int:
    """Print what is wrong with each file; 1 if anything is."""
    from ciliumd.cli.manifests import judge
    from ciliumd.resources import parser

    parse = parser(node_selectors=arguments.node_selectors)
    findings = [finding for file in arguments.files for finding in judge(file, parse=parse)]
    bad = [finding for finding in findings if finding.problem]
    rows = [
        {"file": f.file, "line": f.line, "object": f.what, "field": f.field, "problem": f.message}
        for f in findings
    ]
    emit(rows, arguments.output, "".join(f"{finding}\n" for finding in findings))
    if bad:
        note(f"{len(bad)} problems in {len({finding.file for finding in bad})} files")
    elif not findings:
        note("no objects")
    return FAILED if bad else OK


def run_get(arguments: argparse.Namespace) -> int:
    """Print the policies."""
    answer: Json = client(arguments).get("policy")
    for problem in answer.get("problems") or ():
        note(f"Refused: {problem_text(problem)}")
    if arguments.namespace:
        answer["policy"] = [p for p in answer["policy"] if p.get("namespace") == arguments.namespace]
    emit(
        answer,
        arguments.output,
        f"{json.dumps(answer['policy'], indent=2)}\nRevision: {answer['revision']}\n",
    )
    return OK


def run_selectors(arguments: argparse.Namespace) -> int:
    """Print each selector with its policies, how many rules have it, and its identities."""
    answer: list[Json] = client(arguments).get("policy/selectors")
    emit(answer, arguments.output, table(_selector_rows(answer, full_labels=arguments.verbose)))
    return OK


def run_explain(arguments: argparse.Namespace) -> int:
    """Print the verdict and who decided it; 1 if the traffic is denied."""
    answer: Json = client(arguments).get(
        "policy/explain",
        **{"from": arguments.source, "to": arguments.destination, "dport": _dport(arguments.dport)},
    )
    emit(answer, arguments.output, _explanation(answer))
    if lost := answer.get("events-lost"):
        note(f"{lost} events were lost so far: the counters may be too low")
    return OK if answer["verdict"] == "allowed" else FAILED


def run_wait(arguments: argparse.Namespace) -> int:
    """Return once every endpoint has the revision; 1 if it takes too long."""
    agent = client(arguments)
    deadline = time.monotonic() + arguments.max_wait_time
    while lagging := _lagging(agent, arguments.revision):
        if time.monotonic() >= deadline:
            raise CommandError(
                f"endpoints {', '.join(map(str, lagging))} have not reached revision {arguments.revision} "
                f"after {arguments.max_wait_time:g} s",
                hint="cilium endpoint list; cilium policy get",
            )
        time.sleep(POLL_SECONDS)
    return OK


def _lagging(agent: Client, revision: int) -> list[int]:
    """Endpoints that do not run *revision* yet; no endpoints means the agent's own revision counts."""
    endpoints = agent.get("endpoint")
    if not endpoints:
        return [] if agent.get("policy")["revision"] >= revision else [0]
    return [endpoint["id"] for endpoint in endpoints if not _realized(endpoint, revision)]


def _realized(endpoint: Json, revision: int) -> bool:
    status = endpoint.get("status") or {}
    realized = (status.get("policy") or {}).get("realized") or {}
    return status.get("state") in _SETTLED_STATES and realized.get("policy-revision", 0) >= revision


def _selector_rows(selectors: list[Json], *, full_labels: bool) -> Iterator[tuple[object, ...]]:
    yield ("SELECTOR", "LABELS", "USERS", "IDENTITIES")
    for one in selectors:
        policies = (_all_labels if full_labels else _policy_name)(one["labels"])
        first, *others = one["identities"] or ("",)
        yield (one["selector"], policies, one["users"], first)
        for identity in others:
            yield ("", "", "", identity)


def _policy_name(policies: list[list[Json]]) -> str:
    """``namespace/name`` of each; of the whole cluster's the name."""
    found = ({label["key"].rpartition(".")[2]: label["value"] for label in labels} for labels in policies)
    return ",".join("/".join(one[key] for key in ("namespace", "name") if key in one) for one in found)


def _all_labels(policies: list[list[Json]]) -> str:
    texts = (
        "".join(f" {one['source']}:{one['key']}={one['value']}" for one in labels) for labels in policies
    )
    return ",".join(f"[{text.strip()}]" for text in texts)


def _dport(text: str) -> str:
    port, _, protocol = text.partition("/")
    if not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise CommandError(f"{text!r} is no port", hint="example: --dport 80/TCP", code=USAGE)
    return f"{port}/{protocol.upper() or 'TCP'}"


def _explanation(answer: Json) -> str:
    traffic = f"{answer['from']} -> {answer['to']} {answer['port']}/{answer['protocol']}"
    head = f"{traffic}: {answer['verdict'].upper()}\n"
    return head + table(_directions(answer), min_width=0) + _suggestion(answer.get("suggestion") or {})


def _suggestion(suggestion: Json) -> str:
    """What would let it pass, as YAML to be applied, or why nothing would."""
    if note_text := suggestion.get("note"):
        return f"\n{note_text[:1].upper()}{note_text[1:]}.\n"
    if not suggestion.get("documents"):
        return ""
    import yaml

    documents = yaml.safe_dump_all(suggestion["documents"], sort_keys=False, explicit_start=True)
    return f"\nThe smallest that would allow it:\n{documents}"


def _directions(answer: Json) -> Iterator[tuple[str, ...]]:
    for direction in answer["directions"]:
        who = f"  {direction['direction']} of {direction['endpoint']}"
        origins = direction.get("origins") or []
        first, *others = origins or ["no policy applies in this direction"]
        passes = direction.get("audited") and direction["verdict"] != "allow"
        yield (who, direction["verdict"] + (" (audited: let through)" if passes else ""), first)
        for other in others:
            yield ("", "", other)
        if row := direction.get("row"):
            yield ("", "", f"row {row}")
        if counter := direction.get("counter"):
            yield ("", "", _counter(counter))


def _counter(counter: Json) -> str:
    """Connections that a row let through, or packets that it denied."""
    text = f"decided {counter['row']} times in this version"
    if counter["traffic"]:
        return f"{text}; this traffic {counter['traffic']} times so far, last {moment(counter['last-seen'])}"
    return f"{text}; this traffic not so far"
