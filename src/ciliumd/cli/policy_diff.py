# SPDX-License-Identifier: Apache-2.0
"""
``cilium policy diff``: what would change for the flows of this node if policies were written otherwise.

Consumed: ``POST /v1/policy/diff`` with ``{documents: [object], delete: [origin]}``, answered by::

    {flows, flows-left-out, events-lost, problems: [{kind, namespace, name, field, message}],
     changes: [{from, to, protocol, port, times, last-seen, verdict, proposed-verdict,
                directions: [{direction, endpoint, verdict, origins, proposed-verdict, proposed-origins}]}]}

Exit codes are those of ``diff``: 0 nothing would change, 1 something would, 2 trouble; 3 no agent.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ciliumd.cli.arguments import Commands, client, command
from ciliumd.cli.errors import FAILED, OK, USAGE, CommandError
from ciliumd.cli.output import emit, note, table

Json = dict[str, Any]

TROUBLE: Final = USAGE


def register(verbs: Commands) -> None:
    """Add ``diff``."""
    diff = command(
        verbs,
        "diff",
        "Say which recorded flows would fare otherwise with other policies",
        run_diff,
    )
    diff.description = (
        "Replays the flows recorded on this node against the policies in force as they would be with those "
        "of the files. Nothing comes into force. Exit codes: 0 nothing would change, 1 something would, "
        "2 trouble, 3 no agent."
    )
    diff.add_argument(
        "-f",
        "--filename",
        dest="files",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="policies and CIDR groups as they are to be written; - is stdin",
    )
    diff.add_argument(
        "--delete",
        action="append",
        default=[],
        metavar="POLICY",
        help="a policy that is to go: cnp:NAMESPACE/NAME, knp:NAMESPACE/NAME or ccnp:NAME",
    )


def run_diff(arguments: argparse.Namespace) -> int:
    """Print the flows that would fare otherwise; exit codes are those of ``diff``."""
    if not (arguments.files or arguments.delete):
        raise CommandError("nothing is proposed", hint="cilium policy diff -f policy.yaml", code=TROUBLE)
    body = {
        "documents": [document for file in arguments.files for document in _documents(file)],
        "delete": arguments.delete,
    }
    try:
        answer: Json = client(arguments).post("policy/diff", body)
    except CommandError as error:
        error.code = TROUBLE if error.code == FAILED else error.code
        raise
    for problem in answer["problems"]:
        note(f"Warning: {problem_text(problem)}")
    emit(answer, arguments.output, "".join(_change(change) for change in answer["changes"]))
    note(f"{len(answer['changes'])} of {answer['flows']} recorded flows would fare otherwise")
    if left_out := answer["flows-left-out"]:
        note(f"{left_out} flows were left out: an end is no longer who it was")
    if lost := answer["events-lost"]:
        note(f"{lost} events were lost so far: the flows may not be all there were")
    return FAILED if answer["changes"] else OK


def _documents(file: Path) -> list[Any]:
    """The objects of a file.  Raises CommandError, which names every problem, if any is not valid."""
    from ciliumd.cli.manifests import judge
    from ciliumd.resources import parser

    # Whether nodes may be selected the agent knows.
    findings = list(judge(file, parse=parser(node_selectors=True)))
    bad = [str(finding) for finding in findings if finding.problem]
    if bad:
        raise CommandError("\n       ".join(bad), hint=f"cilium policy validate {file}", code=TROUBLE)
    try:
        # What JSON cannot say is in no field that is read.
        return [json.loads(json.dumps(finding.document, default=str)) for finding in findings]
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{file} cannot be sent: {error}", code=TROUBLE) from error


def _change(change: Json) -> str:
    traffic = f"{change['from']} -> {change['to']} {change['port']}/{change['protocol']}"
    verdicts = f"{change['verdict'].upper()}, would be {change['proposed-verdict'].upper()}"
    head = f"{traffic}: {verdicts} (seen {change['times']} times, last {moment(change['last-seen'])})\n"
    return head + table(_changed_directions(change), min_width=0)


def _changed_directions(change: Json) -> Iterator[tuple[str, ...]]:
    for one in change["directions"]:
        if (one["verdict"] == "allow") != (one["proposed-verdict"] == "allow"):
            who = f"  {one['direction']} of {one['endpoint']}"
            yield (who, "now", one["verdict"], _origins(one["origins"]))
            yield ("", "then", one["proposed-verdict"], _origins(one["proposed-origins"]))


def _origins(origins: list[str]) -> str:
    return ", ".join(origins) or "no policy applies in this direction"


def moment(text: str) -> str:
    """A time of the agent's, to the second."""
    return f"{text.partition('.')[0].removesuffix('Z')}Z"


def problem_text(problem: Json) -> str:
    """What is wrong with an object, and where it is written."""
    where = f"{problem['namespace']}/{problem['name']}" if problem.get("namespace") else problem["name"]
    text = f"{problem['kind']} {where}: {problem.get('field', '')} {problem['message']}"
    file = problem.get("file")
    line = f":{problem['line']}" if problem.get("line") else ""
    return f"{text} ({file}{line})" if file else text
