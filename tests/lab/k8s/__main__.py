# SPDX-License-Identifier: Apache-2.0
"""
A cluster by hand.

    python -m lab.k8s up [--nodes 2] [--dual | --ipv6] [--cni none|bridge] [--proxy none|iptables|nftables]
    python -m lab.k8s list
    python -m lab.k8s run N NODE COMMAND...     on a node of cluster N
    python -m lab.k8s load N ARCHIVE...         images onto every node
    python -m lab.k8s down N
"""

import argparse
import os
import sys
import time
from pathlib import Path

from lab.k8s import plan
from lab.k8s.baseline import PROXY_MODES
from lab.k8s.cluster import Cluster, sweep
from lab.k8s.pki import ADMIN


def up(arguments: argparse.Namespace) -> None:
    """Bring one up and leave it."""
    started = time.monotonic()
    for prefix in sweep():
        print(f"removed {prefix}, which a killed run had left")
    cluster = Cluster(
        nodes=arguments.nodes,
        dual=arguments.dual,
        six=arguments.ipv6,
        cni=arguments.cni,
        proxy=arguments.proxy,
    )
    cluster.up()
    cluster.keep()
    print(f"{cluster.plan.prefix} is up after {time.monotonic() - started:.1f} s")
    print(f"export KUBECONFIG={cluster.pki.kubeconfig(ADMIN)} PATH={cluster.programs}:$PATH")


def existing(number: int) -> Cluster:
    """The cluster of that number."""
    for one in plan.registered():
        if one.number == number:
            return Cluster(existing=one)
    raise SystemExit(f"there is no cluster {number}: see `python -m lab.k8s list`")


def main() -> int:
    """Do what the words say; the exit code."""
    parser = argparse.ArgumentParser(prog="lab.k8s", description="a cluster by hand")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("up")
    command.add_argument("--nodes", type=int, default=2)
    families = command.add_mutually_exclusive_group()
    families.add_argument("--dual", action="store_true", help="both families")
    families.add_argument("--ipv6", action="store_true", help="IPv6 alone")
    command.add_argument("--cni", choices=["none", "bridge"], default="none")
    command.add_argument("--proxy", choices=["none", *PROXY_MODES], default="none")
    commands.add_parser("list")
    for name, rest in (("run", "words"), ("load", "archives"), ("down", None)):
        command = commands.add_parser(name)
        command.add_argument("number", type=int)
        if rest == "words":
            command.add_argument("node")
        if rest is not None:
            command.add_argument(rest, nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if os.geteuid():
        sys.exit("namespaces, control groups and BPF need root")
    if arguments.command == "up":
        up(arguments)
    elif arguments.command == "list":
        for one in plan.registered():
            print(f"{one.number}  {one.node_count} nodes  {one.api_server}  {one.directory}")
    elif arguments.command == "run":
        done = existing(arguments.number).node(arguments.node).run(arguments.words, check=False)
        print(done.stdout + done.stderr, end="")
        return done.returncode
    elif arguments.command == "load":
        existing(arguments.number).load(*(Path(path).absolute() for path in arguments.archives))
    else:
        existing(arguments.number).down()
    return 0


if __name__ == "__main__":
    sys.exit(main())
