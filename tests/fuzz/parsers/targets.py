# SPDX-License-Identifier: Apache-2.0
"""
What is fuzzed: functions of bytes that return, or raise when something is wrong.

Each target lets through the refusals its parser documents and no other exception, and checks what must hold
of what was accepted.  No fuzzer is needed to call one: the corpus is replayed by the unit tests.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ciliumd import abi
from ciliumd.cni.errors import CniError
from ciliumd.cni.request import Request
from ciliumd.daemon.config_directory import ConfigRefused, interpret
from ciliumd.daemon.settings import Settings
from ciliumd.desired.policy import packed_classes, packed_rules, unpacked
from ciliumd.flows.decode import RECORD_SIZE, decode, decode_batch
from ciliumd.flows.enrich import Lookups, enrich
from ciliumd.flows.maprows import decode_row, readable
from ciliumd.flows.render import monitor_json, text, verbose_text
from ciliumd.flows.wire import to_json
from ciliumd.kubernetes.kinds import TABLES_OF
from ciliumd.kubernetes.read import read_event
from ciliumd.model.label_filter import parse_label_filter
from ciliumd.model.labels import Label
from ciliumd.reconcile.delta import DeltaTracker
from ciliumd.resources import ResourceError, documents, parse
from ciliumd.resources.fields import parse_address, parse_prefix_or_address
from ciliumd.sources.manifests import MalformedManifest, read_manifest
from ciliumd.statefile import StateFileDamaged, read_rows, write_rows
from ciliumd.statefile.journal import FIRST_LINE, Journal, Records
from fuzz.parsers import cjson
from fuzz.parsers.drawn import Bytes, drawn_case
from property.computed import InterpreterJudge, Node, verdict_name
from property.reference.oracle import verdict

Target = Callable[[bytes], None]

# Of the packets of a case one in so many is judged: the others are another input's.
_SPREAD = 7
_INTERNAL = "internal error"
_KINDS = {kind.kind: kind for kind in TABLES_OF}
_LOOKUPS = Lookups(
    labels=lambda _number: (),
    pod=lambda _addr: None,
    origins=lambda _cookie: (),
    interface=lambda _index: None,
    node_name="kind/node1",
)
_MAPS = sorted(name for name in abi.MAPS if readable(name))


def _json(data: bytes) -> Any:
    """What JSON *data* says; None if it says nothing."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def objects(data: bytes) -> None:
    """Documents of every kind, as a manifest and as an event of a watch."""
    document = _json(data)
    try:
        for one in documents(document):
            parse(one).rows()
    except (ResourceError, TypeError):
        if isinstance(document, dict) and document.get("kind") != "List":
            parse_refuses(document)
    if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
        return
    kind = _KINDS.get(document["kind"])
    metadata = document.get("metadata")
    if kind is None or not isinstance(metadata, dict):
        return
    rooted = {**document, "metadata": {**metadata, "name": "fuzzed", "namespace": "default", "uid": "1"}}
    event = read_event(kind, {"type": "ADDED", "object": rooted})
    if event.problem is not None and _INTERNAL in event.problem.message:
        parse(rooted)
        raise AssertionError(f"{event.problem} but parse accepts it")


def parse_refuses(document: Mapping[str, Any]) -> None:
    """Whatever is wrong with one object is a refusal."""
    said = ""
    try:
        parse(document)
    except ResourceError as error:
        said = str(error)
    assert len(said) < 4_000, "a refusal as long as its cause"


def manifests(data: bytes) -> None:
    """Files of manifests, in YAML and in JSON."""
    text_of = data.decode(errors="replace")
    for file in ("fuzzed.yaml", "fuzzed.json"):
        try:
            found = read_manifest(file, text_of)
        except MalformedManifest:
            continue
        for one in found:
            assert (one.rows is None) != (one.problem is None)
            assert one.problem is None or _INTERNAL not in one.problem.message, one.problem


def policy(data: bytes) -> None:
    """Policies drawn from the bytes: what the maps say is what the oracle reads in the documents."""
    drawn = Bytes(data)
    case = drawn_case(drawn)
    node, judge = Node(case), InterpreterJudge()
    packets = case.packets()
    for subject in case.subjects()[:2]:
        state = node.state(subject)
        assert unpacked(packed_classes(state), packed_rules(state)) == state
        judge.load(state)
        for packet in packets[drawn.below(_SPREAD) :: _SPREAD]:
            written = verdict(case.policies, subject, packet, enforcement=case.enforcement)
            assert written == verdict_name(node, judge, packet), (subject, packet)


def mapdiff(data: bytes) -> None:
    """What is pending is the difference, whatever was asked, written, lost or found in between."""
    drawn = Bytes(data)
    tracker: DeltaTracker[int, int] = DeltaTracker()
    desired: dict[int, int] = {}
    realized: dict[int, int] = {}
    while drawn.more:
        rows = {drawn.below(6): drawn.below(3) for _ in range(drawn.below(4))}
        keys = [drawn.below(6) for _ in range(drawn.below(3))]
        match drawn.below(5):
            case 0:
                tracker.set_desired(rows, keys)
                desired = {key: value for key, value in desired.items() if key not in keys} | rows
            case 1:
                tracker.replace_desired(rows)
                desired = rows
            case 2:
                tracker.record_updated(rows)
                realized = realized | rows
            case 3:
                tracker.record_deleted(keys)
                realized = {key: value for key, value in realized.items() if key not in keys}
            case _:
                tracker.record_drift(tracker.drift(rows))
                realized = rows
        updates = {key for key, value in desired.items() if realized.get(key) != value}
        assert (tracker.desired, tracker.realized) == (desired, realized)
        assert set(tracker.pending_updates) == updates
        assert set(tracker.pending_deletions) == realized.keys() - desired.keys()
        assert tracker.in_sync == (desired == realized)


def events(data: bytes) -> None:
    """Records of the datapath: decoded, named, and rendered in every form."""
    record = data[:RECORD_SIZE].ljust(RECORD_SIZE, b"\0")
    event = decode(record, offset_ns=1_700_000_000_000_000_000)
    batch = decode_batch(record * 2, offset_ns=0)
    assert (len(batch.events), batch.unknown) == ((2, 0) if event else (0, 2))
    if event is not None:
        flow = enrich(event, _LOOKUPS)
        for numeric in (False, True):
            text(flow, numeric=numeric)
            verbose_text(flow, numeric=numeric)
        json.dumps([monitor_json(flow), to_json(flow)])


def maprows(data: bytes) -> None:
    """Rows of every map, as the command line shows them."""
    drawn = Bytes(data)
    name = _MAPS[drawn.below(len(_MAPS))]
    spec = abi.MAPS[name]
    key, value = spec.key_size, spec.value_size
    if spec.inner is not None:
        key, value = spec.key_size + spec.inner.key_size, spec.inner.value_size
    if spec.type.name.startswith("PERCPU"):
        value = -(-value // 8) * 8 * (1 + drawn.below(3))
    json.dumps(decode_row(name, drawn.take(key), drawn.take(value)), default=str)


def cni(data: bytes) -> None:
    """Requests as the executable passes them on."""
    try:
        request = Request.decode(data)
    except CniError:
        return
    for ask in (lambda: request.pod, lambda: request.valid_attachments, lambda: request.previous):
        try:
            ask()
        except CniError:
            continue


def config(data: bytes) -> None:
    """Keys and values of a mounted ConfigMap: ``key=value`` by line."""
    lines = data.decode(errors="replace").split("\n")
    texts = {key: value.strip() for key, _, value in (line.partition("=") for line in lines) if key}
    try:
        found = interpret(texts, Settings.model_fields)
        Settings(**found.values)
    except (ConfigRefused, ValueError):
        return


def statefile(data: bytes) -> None:
    """A state file of any content is refused, or what was written."""
    with TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "state"
        path.write_bytes(data)
        try:
            rows = read_rows(path)
        except StateFileDamaged:
            rows = {"key": data.hex()}
        write_rows(path, rows)
        assert read_rows(path) == rows


def journal(data: bytes) -> None:
    """A journal of any content: its whole lines count, and it goes on from there."""
    with TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "journal"
        path.write_bytes(data if data[:1] == b"!" else FIRST_LINE + data)
        try:
            with Records(path) as records:
                texts = {key: records.text(key) for key in records}
        except ValueError:
            return
        written = Journal(path)
        written.append(texts)
        written.commit()
        with Records(path) as records:
            assert {key: records.text(key) for key in records} == texts
            assert not records.damaged


def labels(data: bytes) -> None:
    """The setting of relevant labels, and labels it judges."""
    text_of, _, keys = data.decode(errors="replace").partition("\n")
    try:
        found = parse_label_filter(text_of)
    except ValueError:
        return
    found.keep(Label("k8s", key[:317], "") for key in keys.split("\n")[:4])


def address(data: bytes) -> None:
    """Everything that goes for an address or a prefix is one, and says itself again."""
    written = data.decode(errors="replace")
    try:
        found = parse_prefix_or_address(written)
    except ValueError:
        return
    assert parse_prefix_or_address(str(found)) == found
    assert parse_address(str(found.network_address)) == found.network_address


TARGETS: Mapping[str, Target] = {
    "objects": objects,
    "manifests": manifests,
    "policy": policy,
    "mapdiff": mapdiff,
    "events": events,
    "maprows": maprows,
    "cni": cni,
    "cni-executable": cjson.differs,
    "config": config,
    "statefile": statefile,
    "journal": journal,
    "labels": labels,
    "address": address,
}
"""By name."""
