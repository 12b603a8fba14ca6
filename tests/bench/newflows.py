# SPDX-License-Identifier: Apache-2.0
"""
P7: what the first packet of a flow costs by the number of rules, beside nftables and iptables with the same
rules.

Each packet is a datagram of a flow of its own, to a port that is the last of those that are allowed one by
one: a chain is walked to its end.  Client and server are two namespaces with ciliumd or a router between them
and share a core, so that sending a packet takes until the server's socket has it.  What arrives is counted:
all that is sent, and before that nothing that is sent to another port.

A sample is short, and senders wait between theirs: so what else the machine does meets all sides alike.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from subprocess import PIPE
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
PACKETS: Final = 100
REFUSED: Final = 10
OTHER_PORT: Final = PORT + 1
NFT_CHAIN, NFT_SET, IPTABLES_CHAIN = "nft chain", "nft set", "iptables chain"
PEERS: Final = (NFT_SET, NFT_CHAIN, IPTABLES_CHAIN)
SECONDS_PER_ROUND: Final = 2.0
# The kernel fills in the sum of the raw header; UDP may go without one.
SENDER: Final = """
import socket, statistics, struct, sys, time
address = sys.argv[1]
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
    one.connect((address, 1))
    ends = [socket.inet_aton(end) for end in (one.getsockname()[0], address)]
head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 29, 0, 0, 64, 17, 0, *ends)
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
there = (address, 0)
for line in sys.stdin:
    port, first, count = map(int, line.split())
    ports = [1024 + (first + number) % 64512 for number in range(count)]
    flows = [head + struct.pack("!HHHHc", source, port, 9, 0, b"?") for source in ports]
    spent = []
    for flow in flows:
        began = time.perf_counter_ns()
        raw.sendto(flow, there)
        spent.append(time.perf_counter_ns() - began)
    print(statistics.median(spent), flush=True)
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


class Sender:
    """Sends from a path's client when it is asked to."""

    def __init__(self, path: Path, cores: Cores) -> None:
        words = [*cores.preferred(cores.client), sys.executable, "-S", "-c", SENDER, path.address]
        self._process = path.client.start(words, stdin=PIPE, output=PIPE)
        self.path = path
        self.sent = 0

    def send(self, port: int, count: int) -> float:
        """So many packets of flows that nobody has seen before; the median, in ns."""
        asked, said = self._process.popen.stdin, self._process.popen.stdout
        assert asked is not None
        assert said is not None
        asked.write(f"{port} {self.sent} {count}\n".encode())
        asked.flush()
        self.sent += count
        return float(said.readline())

    def sample(self) -> dict[str, float]:
        """One sample."""
        return {"packet_ns": self.send(PORT, PACKETS)}

    def refused(self) -> None:
        """Nothing that is sent to another port arrives."""
        before = arrived(self.path.server)
        self.send(OTHER_PORT, REFUSED)
        wrongly = arrived(self.path.server) - before
        assert not wrongly, f"{self.path.name}: {wrongly} packets to another port arrived"


def measure(*, pairs: int) -> Section:
    """All sides and sizes in turn."""
    cores = Cores.one()
    title = f"P7  the first packet of a flow by number of rules, {cores}"
    section = Section("new flows by rules", title, case="P7")
    with compared() as found, contextlib.ExitStack() as stack:
        senders = {name: Sender(path, cores) for name, path in found.items()}
        before = {}
        for name, one in senders.items():
            stack.enter_context(sink(one.path.server, PORT))
            one.refused()
            before[name] = arrived(one.path.server) - one.sent
        take = {name: one.sample for name, one in senders.items()}
        control_of = named(NFT_SET, SIZES[-1])
        taken = rounds.run(take, control_of=control_of, rounds=pairs, seconds=pairs * SECONDS_PER_ROUND)
        for name, one in senders.items():
            came = arrived(one.path.server) - before[name]
            assert came == one.sent, f"{name}: {came} of {one.sent} packets arrived"
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
