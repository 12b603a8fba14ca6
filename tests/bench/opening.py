# SPDX-License-Identifier: Apache-2.0
"""
P7: what opening a connection costs by the number of rules, beside an iptables chain and an nft set of the
same rules.

Rules differ by port; the one that matches is the last of the chain.  The time is that of ``connect()``,
client and server on one core, each connection reset at once.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Final

from bench import rounds
from bench.machine import Cores
from bench.paths import CILIUMD, Path, cluster, routed
from bench.result import Figure, Section
from bench.samples import spread
from lab import manifests
from lab.netns import Namespace
from lab.waiting import eventually

IPTABLES: Final = "/usr/sbin/iptables-legacy-restore"
PORT: Final = 60000
FIRST: Final = 20000
MANY: Final = 10_000
CONNECTS: Final = 1000
# A CiliumNetworkPolicy takes 40 ports in one place.
PORTS_EACH: Final = 40
CHAIN, SET, MANY_OF_OURS = "iptables chain", "nft set", "ciliumd"
FEW_OF_OURS, FEW_IN_CHAIN = "ciliumd, 1 rule", "iptables chain, 1 rule"
CLIENT: Final = """
import socket, statistics, struct, sys, time
address, count = (sys.argv[1], int(sys.argv[2])), int(sys.argv[3])
reset, spent = struct.pack("ii", 1, 0), []
for _ in range(count):
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        began = time.perf_counter_ns()
        one.connect(address)
        spent.append(time.perf_counter_ns() - began)
print(statistics.median(spent) / 1000)
"""
SERVER: Final = """
import socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=4096) as server:
    while True:
        server.accept()[0].close()
"""


def ports(count: int) -> list[int]:
    """The ports of *count* rules, the one that matches last."""
    return [*range(FIRST, FIRST + count - 1), PORT]


def chain(count: int, protocol: str = "tcp") -> str:
    """One rule for each port, and a policy of DROP, as iptables-restore reads it."""
    rules = "\n".join(f"-A FORWARD -p {protocol} --dport {port} -j ACCEPT" for port in ports(count))
    known = "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
    return f"*filter\n:FORWARD DROP [0:0]\n{known}\n{rules}\nCOMMIT\n"


def lines(count: int, protocol: str = "tcp") -> str:
    """The same rules one after the other, as nft reads them."""
    return _firewall("", "\n".join(f"{protocol} dport {port} accept" for port in ports(count)))


def table(count: int, protocol: str = "tcp") -> str:
    """One rule with a set of all ports."""
    elements = ", ".join(map(str, ports(count)))
    allowed = f"set allowed {{ type inet_service; elements = {{ {elements} }} }}"
    return _firewall(allowed, f"{protocol} dport @allowed accept")


def _firewall(sets: str, rules: str) -> str:
    return f"""
table inet firewall {{
    {sets}
    chain forward {{
        type filter hook forward priority 0; policy drop;
        ct state established,related accept
        {rules}
    }}
}}
"""


def policy(name: str, count: int, protocol: str = "tcp") -> manifests.Object:
    """The pods *name* are reached at these ports by the client alone."""
    each = ports(count)
    groups = [each[at : at + PORTS_EACH] for at in range(0, count, PORTS_EACH)]
    return manifests.cilium_policy(
        name,
        {
            "endpointSelector": {"matchLabels": {"app": name}},
            "ingress": [
                {
                    "fromEndpoints": [{"matchLabels": {"app": "client"}}],
                    "toPorts": [
                        {"ports": [{"port": f"{port}", "protocol": protocol.upper()} for port in group]}
                        for group in groups
                    ],
                }
            ],
        },
    )


@contextlib.contextmanager
def served(path: Path, cores: Cores) -> Iterator[None]:
    """Somebody accepts and hangs up."""
    command = [*cores.preferred(cores.server), sys.executable, "-c", SERVER, path.address, f"{PORT}"]
    server = path.server.start(command)
    try:
        eventually(lambda: f":{PORT}" in _listening(path.server), f"{path.name}: the server listens")
        yield
    finally:
        server.end()


def _listening(server: Namespace) -> str:
    return server.run(["/usr/bin/ss", "-Hltn"]).stdout


def sample(path: Path, cores: Cores) -> dict[str, float]:
    """Median of many connections, in us."""
    command = [
        *cores.preferred(cores.client), sys.executable, "-c", CLIENT, path.address, f"{PORT}", f"{CONNECTS}",
    ]  # fmt: skip
    return {"connect_us": float(path.client.run(command).stdout)}


@contextlib.contextmanager
def compared() -> Iterator[Mapping[str, Path]]:
    """Every path, its rules in force."""
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(cluster())
        node = ours.node
        few, many = node.pod("few", {"app": "few"}), node.pod("many", {"app": "many"})
        node.apply_policy("few", policy("few", 1))
        node.apply_policy("many", policy("many", MANY))
        paths = {
            MANY_OF_OURS: Path(CILIUMD, ours.client.netns, many.netns, many.address),
            FEW_OF_OURS: Path(FEW_OF_OURS, ours.client.netns, few.netns, few.address),
            SET: stack.enter_context(routed(SET, table(MANY))),
        }
        for name, count in ((CHAIN, MANY), (FEW_IN_CHAIN, 1)):
            paths[name] = stack.enter_context(routed(name, by=([IPTABLES], chain(count))))
        yield paths


def measure(*, pairs: int) -> Section:
    """All paths in turn."""
    cores = Cores.one()
    section = Section("connections by rules", f"P7  a new connection under {MANY} rules, {cores}", case="P7")
    with compared() as paths, contextlib.ExitStack() as servers:
        for path in paths.values():
            servers.enter_context(served(path, cores))
        take = {name: (lambda path=path: sample(path, cores)) for name, path in paths.items()}
        taken = rounds.run(take, control_of=SET, rounds=pairs, seconds=pairs * 10.0)
    rounds.report(
        section, taken, quantity="connect_us", control_of=SET,
        goals=dict.fromkeys((CHAIN, SET, FEW_OF_OURS)), higher_is_better=False,
        what=f"connect() p50, {MANY} rules",
    )  # fmt: skip
    grown = taken.ratio(CHAIN, FEW_IN_CHAIN, "connect_us", higher_is_better=False)
    section.add(Figure.of_ratio(f"iptables chain: {MANY} rules / 1 rule", grown))
    for name in take:
        figure = spread(taken.columns[name]["connect_us"], 2)
        section.add(Figure.of(f"{name}: connect() min / median / max", figure, "us", note="today"))
    section.data = {"columns": taken.columns, "discarded_rounds": taken.discarded}
    return section
