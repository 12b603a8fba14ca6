# SPDX-License-Identifier: Apache-2.0
"""Where fuzzing starts: inputs that get past the first check of each target, written by running this."""

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from ciliumd.abi import Event, EventType
from ciliumd.model.net import addr16
from ciliumd.statefile import write_rows
from ciliumd.statefile.journal import FIRST_LINE, Journal
from fuzz.parsers.__main__ import CORPUS
from fuzz.samples import SAMPLES

_CONFIG = {"cniVersion": "1.1.0", "name": "cilium", "type": "cilium-cni", "enable-debug": True}
_REQUEST = {
    "command": "ADD",
    "container_id": "c1",
    "netns": "/run/netns/x",
    "ifname": "eth0",
    "args": "K8S_POD_NAMESPACE=blue;K8S_POD_NAME=web",
    "path": "/opt/cni/bin",
    "config": _CONFIG,
}


def _event(kind: EventType, protocol: int) -> bytes:
    fields = dict.fromkeys(Event.__match_args__, 0)
    from ipaddress import ip_address

    fields |= {"type": int(kind), "protocol": protocol, "sport": 8 << 8, "dport": 80, "ethertype": 0x0800}
    addresses = {"src": addr16(ip_address("10.0.0.1")), "dst": addr16(ip_address("fd00::1"))}
    return Event(**fields | addresses | {"smac": bytes(6), "dmac": bytes(6)}).pack()


def seeds(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Target and input."""
    chance = random.Random(1)
    for sample in SAMPLES:
        yield "objects", json.dumps(sample).encode()
    yield "manifests", yaml.safe_dump_all([dict(one) for one in SAMPLES[:3]]).encode()
    yield "manifests", json.dumps({"kind": "List", "items": SAMPLES[3:5]}).encode()
    for _ in range(6):
        yield "policy", chance.randbytes(200)
        yield "mapdiff", chance.randbytes(60)
    for kind in EventType:
        for protocol in (1, 6, 58):
            yield "events", _event(kind, protocol)
    for number in range(20):
        yield "maprows", bytes([number]) + chance.randbytes(80)
    for command, more in (
        ("ADD", {}),
        ("CHECK", {"prevResult": {}}),
        ("GC", {"cni.dev/valid-attachments": []}),
    ):
        yield "cni", json.dumps({**_REQUEST, "command": command, "config": {**_CONFIG, **more}}).encode()
    yield "cni-executable", json.dumps(_CONFIG).encode()
    yield "cni-executable", b' {"a" : [1e-3, "\\u00e9", {"b":null}], "log-file":"/x"}'
    yield (
        "config",
        b"debug=true\ntunnel=vxlan\nenable-policy=always\nbpf-ct-global-tcp-max=1000\nenable-tcx=true",
    )
    yield (
        "config",
        b"routing-mode=native\ncluster-pool-ipv4-cidr=10.0.0.0/8 10.1.0.0/16\nk8s-sync-timeout=1m30s",
    )
    write_rows(folder / "state", {"a": "1", "b": "2"})
    yield "statefile", (folder / "state").read_bytes()
    written = Journal(folder / "journal")
    written.append({"a": "1", "b": ""})
    written.append({"b": "x"})
    written.commit()
    yield "journal", (folder / "journal").read_bytes().removeprefix(FIRST_LINE)
    yield "labels", b"!app k8s:!io\\.example.* any:team\napp\nio.example/x"
    for text in (b"10.0.0.1", b"10.0.0.0/8", b"fd00::/8", b"2001:db8::1", b"fe80::1%eth0", b"::ffff:1.2.3.4"):
        yield "address", text


def main() -> None:
    """Write them."""
    import tempfile

    counted: Mapping[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for target, data in seeds(Path(folder)):
            number = counted.get(target, 0)
            counted = {**counted, target: number + 1}
            (CORPUS / target).mkdir(parents=True, exist_ok=True)
            (CORPUS / target / f"seed-{number:02}.txt").write_bytes(data)


if __name__ == "__main__":
    main()
