# SPDX-License-Identifier: Apache-2.0
"""
P7: what the first packet of a flow costs by the number of rules, beside nftables and iptables with the same
rules.

Each packet is a datagram of a flow of its own, to a port that is the last of those that are allowed one by
one: a chain is walked to its end.  Client and server are two namespaces with ciliumd or a router between them
and share a core, so that sending a packet takes until the server's socket has it.  What arrives is counted:
all that is sent, and before that nothing that is sent to another port.
"""

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final

from bench import rounds
from bench.crowded import sink
from bench.machine import Cores
from bench.opening import IPTABLES, PORT, chain, lines, policy, table
from bench.paths import CILIUMD, Path, cluster, routed
from bench.result import Figure, Section, Table
from bench.rounds import Rounds
from bench.samples import Ratio, spread
from bench.verdicts import LIMIT, SIZES
from lab.netns import Namespace

PROTOCOL: Final = "udp"
PACKETS: Final = 1000
REFUSED: Final = 10
OTHER_PORT: Final = PORT + 1
NFT_CHAIN, NFT_SET, IPTABLES_CHAIN = "nft chain", "nft set", "iptables chain"
PEERS: Final = (NFT_SET, NFT_CHAIN, IPTABLES_CHAIN)
SECONDS_PER_ROUND: Final = 15.0
# The kernel fills in the sum of the raw header; UDP may go without one.
SENDER: Final = """
import socket, statistics, struct, sys, time
address, port, first, count = sys.argv[1], *map(int, sys.argv[2:])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
    one.connect((address, port))
    ends = [socket.inet_aton(end) for end in (one.getsockname()[0], address)]
head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 29, 0, 0, 64, 17, 0, *ends)
ports = [1024 + (first + number) % 64512 for number in range(count)]
flows = [head + struct.pack("!HHHHc", source, port, 9, 0, b"?") for source in ports]
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
spent, there = [], (address, 0)
for flow in flows:
    began = time.perf_counter_ns()
    raw.sendto(flow, there)
    spent.append(time.perf_counter_ns() - began)
print(statistics.median(spent))
"""


def rules(count: int) -> str:
    """So many of them."""
    return f"{count} rule{'s' if count > 1 else ''}"


def named(side: str, count: int) -> str:
    """One side with so many rules."""
    return f"{side}, {rules(count)}"


@contextlib.contextmanager
def compared() -> Iterator[Mapping[str, Path]]:
    """Every side with every number of rules in force."""
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(cluster())
        found: dict[str, Path] = {}
        for count in SIZES:
            name = f"rules{count}"
            pod = ours.node.pod(name, {"app": name})
            ours.node.apply_policy(name, policy(name, count, PROTOCOL))
            found[named(CILIUMD, count)] = Path(CILIUMD, ours.client.netns, pod.netns, pod.address)
        for count in SIZES:
            for side, written in ((NFT_SET, table), (NFT_CHAIN, lines)):
                label = named(side, count)
                found[label] = stack.enter_context(routed(label, written(count, PROTOCOL)))
            label = named(IPTABLES_CHAIN, count)
            found[label] = stack.enter_context(routed(label, by=([IPTABLES], chain(count, PROTOCOL))))
        yield found


def arrived(server: Namespace) -> int:
    """How many packets its protocols were given."""
    names, values = (
        line.split()
        for line in server.run(["/bin/cat", "/proc/self/net/snmp"]).stdout.splitlines()
        if line.startswith("Ip: ")
    )
    return int(values[names.index("InDelivers")])


def sent(path: Path, cores: Cores, port: int, first: int, count: int) -> tuple[float, int]:
    """The median of so many packets, in ns, and how many of them arrived."""
    words = [sys.executable, "-S", "-c", SENDER, path.address, f"{port}", f"{first}", f"{count}"]
    before = arrived(path.server)
    taken = float(path.client.run([*cores.preferred(cores.client), *words]).stdout)
    return taken, arrived(path.server) - before


def sample(path: Path, cores: Cores, turns: Iterator[int]) -> dict[str, float]:
    """Packets of flows that nobody has seen before."""
    taken, came = sent(path, cores, PORT, next(turns) * PACKETS, PACKETS)
    assert came == PACKETS, f"{path.name}: {came} of {PACKETS} packets arrived"
    return {"packet_ns": taken}


def measure(*, pairs: int) -> Section:
    """All sides and sizes in turn."""
    cores = Cores.one()
    section = Section(
        "new flows by rules", f"P7  the first packet of a flow by number of rules, {cores}", case="P7"
    )
    with compared() as found, contextlib.ExitStack() as stack:
        take: dict[str, Callable[[], Mapping[str, float]]] = {}
        for name, path in found.items():
            stack.enter_context(sink(path.server, PORT))
            _, wrongly = sent(path, cores, OTHER_PORT, 0, REFUSED)
            assert not wrongly, f"{name}: {wrongly} packets to another port arrived"
            take[name] = partial(sample, path, cores, itertools.count())
        control_of = named(NFT_SET, SIZES[-1])
        taken = rounds.run(take, control_of=control_of, rounds=pairs, seconds=pairs * SECONDS_PER_ROUND)
    report(section, taken)
    section.data = {"columns": taken.columns, "discarded_rounds": taken.discarded}
    return section


def report(section: Section, taken: Rounds) -> None:
    """What grows with the rules, and ciliumd beside the others with the fewest and the most of them."""
    few, many = SIZES[0], SIZES[-1]
    control_of = named(NFT_SET, many)

    def compared_to(ours: str, peer: str) -> Ratio:
        return taken.ratio(ours, peer, "packet_ns", higher_is_better=False)

    control = compared_to(rounds.CONTROL, control_of)
    sound = rounds.sound(control)
    for side in (CILIUMD, *PEERS):
        grown = compared_to(named(side, many), named(side, few))
        goal = LIMIT if side == CILIUMD else None
        name = f"{side}: {rules(many)} / {rules(few)}"
        section.add(Figure.of_ratio(name, grown, goal=goal, void=not sound))
    for count in (few, many):
        for side in PEERS:
            beside = compared_to(named(CILIUMD, count), named(side, count))
            name = f"{rules(count)}: ciliumd / {side}"
            section.add(Figure.of_ratio(name, beside, void=not sound))
    section.add(rounds.control_figure("first packet of a flow", control_of, control))
    section.table = Table(("ns, min / median / max", *map(rules, SIZES)))
    for side in (CILIUMD, *PEERS):
        columns = (taken.columns[named(side, count)]["packet_ns"] for count in SIZES)
        section.table.rows.append((side, *(spread(column, 0) for column in columns)))
