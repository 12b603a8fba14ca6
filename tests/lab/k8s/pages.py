# SPDX-License-Identifier: Apache-2.0
"""Commands of the documentation, run on a cluster as they are written."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.k8s.ciliumd import Ciliumd
from lab.k8s.node import ClusterNode
from lab.process import REPOSITORY, CommandFailed, Process, run
from unit.docs.pages import Block, blocks, lines, words_of

CHART_PAGE: Final = REPOSITORY / "charts" / "ciliumd" / "README.md"
PROGRAMS: Final = ("kubectl", "helm")
# How blocks begin that more than one file of the layer needs.
CLEAN_UP: Final = "helm upgrade cilium charts/ciliumd --namespace kube-system --reuse-values"
BESIDE_KUBE_PROXY: Final = (
    "helm install cilium charts/ciliumd --namespace kube-system --set kubeProxyReplacement=false"
)
# What a reader has to put in: the address of the API server, without a service.
API_SERVER: Final = "API_SERVER"
SECONDS: Final = 180.0
# A command that follows what happens ends when its reader ends it.
FOLLOWS: Final = "monitor"
FOLLOWED_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Shown:
    """A block of commands, and where it stands."""

    page: str
    first: str
    commands: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        return f"{self.page}: {self.first}"


def shown() -> list[Shown]:
    """Every block of the pages that is typed at a shell with kubectl or helm; equal ones once."""
    found: dict[tuple[tuple[str, ...], ...], Shown] = {}
    for page in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")), CHART_PAGE):
        for block in blocks(page):
            commands = _commands(block)
            if commands:
                one = Shown(str(page.relative_to(REPOSITORY)), " ".join(commands[0]), commands)
                found.setdefault(commands, one)
    return list(found.values())


def _commands(block: Block) -> tuple[tuple[str, ...], ...]:
    if block.language:
        return ()
    return tuple(words for line in lines(block) if (words := words_of(line))[:1] and words[0] in PROGRAMS)


def the(page: str, begins: str) -> Shown:
    """The block of a page whose first command begins so; it is the only one."""
    of_page = [
        Shown(page, " ".join(commands[0]), commands)
        for block in blocks(REPOSITORY / page)
        if (commands := _commands(block))
    ]
    (one,) = (one for one in of_page if one.first.startswith(begins))
    return one


def follow_on_node(node: ClusterNode, page: str, begins: str) -> str:
    """Run the one command that begins so on a node; what it printed.  Raises ``CommandFailed``."""
    (words,) = (
        words
        for block in blocks(REPOSITORY / page)
        for line in lines(block)
        if " ".join(words := words_of(line)).startswith(begins)
    )
    return node.run(words, seconds=SECONDS).stdout


def follow(ciliumd: Ciliumd, block: Shown, *more: str) -> list[str]:
    """
    Run the commands of a block, one after the other; what each printed.  Raises ``CommandFailed``.

    *more* are words behind those of each command.
    """
    return [_run(ciliumd, (*words, *more)) for words in block.commands]


def _run(ciliumd: Ciliumd, words: tuple[str, ...]) -> str:
    cluster = ciliumd.cluster
    address = str(cluster.plan.node(1))
    command = [cluster.programs / words[0], *(word.replace(API_SERVER, address) for word in words[1:])]
    if FOLLOWS in words:
        return _follow(command, cluster.env)
    # Paths in the pages begin at the top of the checkout.
    inside = ["/usr/bin/env", "-C", REPOSITORY, *command]
    return run(inside, env=cluster.env, seconds=SECONDS).stdout


def _follow(command: list[str | Path], env: dict[str, str]) -> str:
    with Process(command, env=env, output=sys.stderr.fileno()) as process:
        deadline = time.monotonic() + FOLLOWED_SECONDS
        while time.monotonic() < deadline:
            if not process.running:
                raise CommandFailed(f"{command} ended with {process.wait()}")
            time.sleep(0.1)
    return ""
