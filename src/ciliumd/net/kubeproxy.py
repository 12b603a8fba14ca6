# SPDX-License-Identifier: Apache-2.0
"""
What a kube-proxy that is gone has left in the node's network: found, and taken away on request.

Chains of iptables, sets of ipset, virtual servers of IPVS and its device, tables of nftables.  What the
kubelet and others made is left alone, rules that only lead to kube-proxy's chains are not.  Sources: the
chains of kube-proxy's packages iptables, ipvs and nftables.
"""

import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from pyroute2 import IPRoute

from ciliumd.net import links
from ciliumd.net.errors import NetError

IPVS_DEVICE: Final = "kube-ipvs0"
NFT_TABLE: Final = "kube-proxy"
PROGRAMS: Final = ("iptables", "ip6tables", "iptables-legacy", "ip6tables-legacy")
# The kubelet's own, by table: kube-proxy has a KUBE-FIREWALL in nat alone.
_KUBELETS: Final = frozenset(
    {
        ("mangle", "KUBE-IPTABLES-HINT"),
        ("mangle", "KUBE-KUBELET-CANARY"),
        ("nat", "KUBE-KUBELET-CANARY"),
        ("filter", "KUBE-KUBELET-CANARY"),
        ("filter", "KUBE-FIREWALL"),
        ("nat", "KUBE-MARK-DROP"),
    }
)
_TARGET = re.compile(r" (?:-j|-g) (\S+)")
_SECONDS: Final = 60


@dataclass(frozen=True, slots=True)
class Leftover:
    """One thing, and what takes it away; that raises NetError."""

    text: str
    remove: Callable[[], object]


def chains_of_kube_proxy(saved: str) -> dict[str, list[str]]:
    """Its chains by table, of the text of ``iptables-save``."""
    found: dict[str, list[str]] = {}
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":KUBE-"):
            chain = line[1:].split()[0]
            if (table, chain) not in _KUBELETS:
                found.setdefault(table, []).append(chain)
    return found


def removal_script(saved: str) -> str:
    """
    Input of ``iptables-restore --noflush`` that takes them away at once, a table at a time.

    Empty when there are none.  Chains are emptied before rules elsewhere that lead there are deleted, and
    are deleted last.
    """
    chains = chains_of_kube_proxy(saved)
    rules = _rules(saved)
    blocks = []
    for table, own in chains.items():
        doomed = frozenset(own)
        leading = [
            f"-D{rule.removeprefix('-A')}"
            for rule in rules.get(table, ())
            if rule.split()[1] not in doomed and (found := _TARGET.search(rule)) and found[1] in doomed
        ]
        blocks += [f"*{table}", *(f":{chain} - [0:0]" for chain in own), *leading]
        blocks += [*(f"-X {chain}" for chain in own), "COMMIT"]
    return "".join(f"{line}\n" for line in blocks)


def leftovers() -> Iterator[Leftover]:
    """Everything there is, in the order to remove it.  NetError when the node has no program to look with."""
    looked = False
    for program in _distinct(PROGRAMS):
        looked = True
        saved = _run((f"{program}-save",))
        if script := removal_script(saved):
            counts = ", ".join(
                f"{len(own)} in {table}" for table, own in sorted(chains_of_kube_proxy(saved).items())
            )
            command = (f"{program}-restore", "--noflush", "--wait")
            yield Leftover(f"chains of kube-proxy in {program} ({counts})", partial(_run, command, script))
    if shutil.which("nft"):
        looked = True
        for line in _run(("nft", "list", "tables")).splitlines():
            _, family, name = (*line.split(), "", "")[:3]
            if name == NFT_TABLE:
                delete = ("nft", "delete", "table", family, name)
                yield Leftover(f"nftables table {family} {name}", partial(_run, delete))
    if not looked:
        raise NetError(
            "look for what kube-proxy left", "neither iptables-save nor nft is in PATH; run this on the node"
        )
    yield from _ipvs()


def _ipvs() -> Iterator[Leftover]:
    """Servers, then the device their addresses are on, then the sets that only chains referred to."""
    servers = Path("/proc/net/ip_vs")
    if servers.exists() and len(servers.read_text("utf-8").splitlines()) > 3 and shutil.which("ipvsadm"):
        yield Leftover("virtual servers of IPVS", partial(_run, ("ipvsadm", "--clear")))
    if device := next((index for index, name in socket.if_nameindex() if name == IPVS_DEVICE), 0):
        yield Leftover(f"device {IPVS_DEVICE}", partial(_delete, device))
    if shutil.which("ipset"):
        for name in _run(("ipset", "list", "-name")).split():
            if name.startswith("KUBE-"):
                yield Leftover(f"ipset {name}", partial(_run, ("ipset", "destroy", name)))


def _delete(ifindex: int) -> None:
    with IPRoute() as ipr:
        links.delete_link(ipr, ifindex=ifindex)


def _rules(saved: str) -> dict[str, list[str]]:
    """Rules by table, as ``-A CHAIN ...``."""
    found: dict[str, list[str]] = {}
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith("-A "):
            found.setdefault(table, []).append(line)
    return found


def _distinct(programs: tuple[str, ...]) -> Iterator[str]:
    """Those that are installed; one that is another by a second name is left out."""
    seen: set[tuple[Path, bool]] = set()
    for program in programs:
        path = shutil.which(f"{program}-save")
        if path is None or not shutil.which(f"{program}-restore"):
            continue
        which = (Path(path).resolve(), "6" in program)
        if which not in seen:
            seen.add(which)
            yield program


def _run(command: tuple[str, ...], script: str = "") -> str:
    try:
        done = subprocess.run(
            command, input=script, capture_output=True, text=True, timeout=_SECONDS, check=True
        )
    except subprocess.CalledProcessError as error:
        raise NetError(" ".join(command), error.stderr.strip() or f"exit code {error.returncode}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NetError(" ".join(command), str(error)) from error
    return done.stdout
