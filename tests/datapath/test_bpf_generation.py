# SPDX-License-Identifier: Apache-2.0
"""Objects, generations and links of a real kernel: load, cut over, replace in place, go away."""

from __future__ import annotations

import hashlib
import select
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ciliumd import abi
from ciliumd.bpf import (
    AlreadyLoaded,
    BpfError,
    CgroupLink,
    Generation,
    Link,
    Map,
    NotFound,
    Object,
    Pins,
    RingBuffer,
    TcxHook,
    TcxLink,
    U64Array,
    VerifierRejected,
    detach_all,
    detach_device,
    retire,
    run_time_stats,
    tcx_supported,
)
from ciliumd.bpf import generation as generations
from ciliumd.bpf import object as objects
from ciliumd.bpf.features import has_kernel_function, service_lacks
from datapath.node import IP_TOOL
from datapath.pinned import own_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

U32 = struct.Struct("=I")
SMALL = {name: 64 for name, spec in abi.MAPS.items() if spec.max_entries > 4096} | {
    "cilium_events_v1": 1 << 16
}
PACKET = bytes.fromhex("0200000000010200000000020800") + bytes(50)
CGROUPS = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Pins]:
    """An empty pin directory, locked."""
    with own_directory() as directory, Pins(directory / "ciliumd", state_dir=tmp_path) as held:
        yield held


@pytest.fixture
def loaded(pins: Pins) -> Iterator[Generation]:
    """The first generation, active."""
    with Generation.load(pins, config={}, max_entries=SMALL) as made:
        made.activate()
        pins.commit()
        yield made


@pytest.fixture
def device(node: None) -> Iterator[int]:
    """The ifindex of a veth in the private namespace of these tests."""
    subprocess.run([IP_TOOL, "link", "add", "h1left", "type", "veth", "peer", "name", "h1right"], check=True)
    try:
        yield ifindex("h1left")
    finally:
        subprocess.run([IP_TOOL, "link", "del", "h1left"], check=False, capture_output=True)


def ifindex(name: str) -> int:
    """Index of a device; /sys shows another namespace's devices, so ask ip."""
    line = subprocess.run([IP_TOOL, "-o", "link", "show", name], check=True, capture_output=True, text=True)
    return int(line.stdout.split(":", 1)[0])


@pytest.fixture
def cgroup(tmp_path: Path) -> Iterator[Path]:
    """An empty control group of this test."""
    top = next(Path(path) for path in CGROUPS if (Path(path) / "cgroup.procs").exists())
    path = top / f"h1-{tmp_path.name}"
    path.mkdir()
    try:
        yield path
    finally:
        path.rmdir()


# -- objects -----------------------------------------------------------------------------------


def test_options_cannot_change_after_load() -> None:
    """Writing read-only data of a loaded object kills the process; here it is an exception."""
    with Object.open("lxc") as source:
        source.set_config("ct_timeout_tcp", 5)
        source.load()
        with pytest.raises(AlreadyLoaded, match="before load"):
            source.set_config("ct_timeout_tcp", 6)
        with pytest.raises(AlreadyLoaded):
            source.config("ct_timeout_tcp")
        with pytest.raises(AlreadyLoaded):
            source.set_max_entries("cilium_ct_v1", 5)
        with pytest.raises(AlreadyLoaded):
            source.load()


def test_options_reach_the_kernel() -> None:
    """The read-only map of the loaded object holds the value that was set."""
    with Object.open("lxc") as source:
        source.set_config("router_ipv4", 0x0A0B0C0D)
        source.load()
        with source.map("lxc.rodata") as rodata:
            assert bytes([10, 11, 12, 13]) in (rodata.lookup(U32.pack(0)) or b"")


def test_a_refused_program_raises_with_the_verifiers_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names object, program and the verifier's last word; the log is whole."""
    original = objects.embedded()["entry"]
    tail_call, unknown_call = bytes.fromhex("850000000c000000"), bytes.fromhex("85000000ffff0000")
    data = original.data.replace(tail_call, unknown_call, 1)
    damaged = replace(original, data=data, sha256=hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(objects, "verify", lambda *_, **__: None)
    with objects.Object(damaged) as source, pytest.raises(VerifierRejected) as caught:
        source.load()
    assert "entry (entry_from_" in str(caught.value)
    assert "the verifier said: invalid func unknown#65535" in str(caught.value)
    assert "bpf_map_lookup_elem" in caught.value.log


def test_programs_outlive_their_object() -> None:
    """A handle has a descriptor of its own."""
    with Object.open("entry") as source:
        source.load()
        program = source.program("entry_from_netdev")
    with program:
        assert program.test_run(PACKET).retval == -1
        assert program.info.xlated_len > 0


# -- test runs ---------------------------------------------------------------------------------


def test_a_run_returns_verdict_packet_and_context() -> None:
    """Without a generation pods are shut and the node is open; mark and cb come back."""
    with Object.open("entry") as source:
        source.load()
        with source.program("entry_from_container") as pod, source.program("entry_from_netdev") as native:
            assert pod.test_run(PACKET).retval == 2
            run = native.test_run(PACKET, mark=0xABC, cb=(1, 2, 3, 4, 5), repeat=10)
            assert (run.retval, run.data, run.mark, run.cb) == (-1, PACKET, 0xABC, (1, 2, 3, 4, 5))


def test_runs_are_counted_while_statistics_are_on() -> None:
    """Counters stand still before and after."""
    with Object.open("entry") as source:
        source.load()
        with source.program("entry_from_netdev") as program:
            program.test_run(PACKET)
            assert program.info.run_cnt == 0
            with run_time_stats():
                program.test_run(PACKET, repeat=5)
            assert program.info.run_cnt == 5


# -- generations -------------------------------------------------------------------------------


def hook_ids(held: Pins) -> dict[int, int]:
    """Row of cilium_hooks_v1 -> program id."""
    with Map.from_pin(held.maps / "cilium_hooks_v1") as hooks:
        values = {row: hooks.lookup(U32.pack(row)) for row in range(2 * abi.Hook.HOOK_MAX)}
    return {row: U32.unpack(value)[0] for row, value in values.items() if value}


def test_nothing_runs_through_a_generation_before_it_is_active(pins: Pins) -> None:
    """Loading writes the idle half; the word decides."""
    with Generation.load(pins, config={}, max_entries=SMALL) as made:
        entry = made.entries["entry_from_container"]
        reasons = made.maps["cilium_metrics_v1"]
        missed = U32.pack(abi.DropReason.DROP_MISSED_TAIL_CALL * 4 + abi.Direction.DIR_EGRESS)
        entry.test_run(PACKET)
        assert reasons.lookup_sums(missed)[0] == 1
        made.activate()
        entry.test_run(PACKET)
        assert reasons.lookup_sums(missed)[0] == 1


def test_generations_alternate_between_the_halves(loaded: Generation, pins: Pins) -> None:
    """The second fills the other half; after retire only its programs are left."""
    first = hook_ids(pins)
    half = range(abi.Hook.HOOK_MAX)
    assert loaded.number == 1
    assert set(first).isdisjoint(half)
    with Generation.load(pins, config={}, max_entries={"cilium_ct_v1": 128}) as second:
        assert second.number == 2
        assert generations.active(pins) == 1
        assert {row: number for row, number in hook_ids(pins).items() if row not in half} == first
        second.activate()
        assert pins.generations() == [1, 2]
        assert retire(pins) == [1]
        assert pins.generations() == [2]
        assert set(hook_ids(pins)) == {row - abi.Hook.HOOK_MAX for row in first}
        assert second.maps["cilium_ct_v1"].info.max_entries == 64


def test_state_survives_and_scratch_does_not(loaded: Generation, pins: Pins) -> None:
    """Pinned maps are the same kernel objects in both generations; the tail-call table is not."""
    key = abi.IpcacheKey(bytes(16), 0).pack()
    loaded.maps["cilium_ipcache_v1"].update(key, abi.IpcacheEntry(0, 7, bytes(16), 0, 0, 0).pack())
    with Generation.load(pins, config={}) as second:
        assert abi.IpcacheEntry.unpack(second.maps["cilium_ipcache_v1"].lookup(key) or b"").identity == 7
        for name, held in second.maps.items():
            assert held.info.id == loaded.maps[name].info.id
        with (
            Map.from_pin(pins.generation(1) / "calls") as old,
            Map.from_pin(pins.generation(2) / "calls") as new,
        ):
            assert old.info.id != new.info.id
            rows = [call for call in abi.Call if call != abi.Call.CALL_MAX and new.lookup(U32.pack(call))]
            assert abi.Call.CALL_INGRESS in rows


def test_a_failed_load_leaves_the_active_generation_alone(loaded: Generation, pins: Pins) -> None:
    """Neither its pins nor its hooks change."""
    before = hook_ids(pins)
    with pytest.raises(ValueError, match="no such option: ct_timeout"):
        Generation.load(pins, config={"ct_timeout": 5})
    with pytest.raises(ValueError, match="out of range"):
        Generation.load(pins, config={"ct_timeout_tcp": -1})
    assert hook_ids(pins) == before
    assert pins.generations() == [1]
    assert loaded.entries["entry_from_container"].test_run(PACKET).retval == 2


def test_a_generation_goes_on_after_its_process(loaded: Generation, pins: Pins) -> None:
    """Only pins hold the programs when every handle is closed."""
    with Object.open("entry") as source:
        for name in source.map_names:
            source.set_pin_path(name, pins.maps / name)
            source.set_max_entries(name, loaded.maps[name].info.max_entries)
        source.load()
        loaded.close()
        with (
            source.program("entry_from_container") as entry,
            Map.from_pin(pins.maps / "cilium_metrics_v1") as metrics,
        ):
            entry.test_run(PACKET)
            missed = U32.pack(abi.DropReason.DROP_MISSED_TAIL_CALL * 4 + abi.Direction.DIR_EGRESS)
            assert metrics.lookup_sums(missed)[0] == 0
            forwarded_or_dropped = sum(sums[0] for _, sums in metrics.items_sums())
            assert forwarded_or_dropped == 1


def test_events_are_drained_whole_and_in_order(loaded: Generation) -> None:
    """Seven drops through a buffer of three records: none is lost, none is cut."""
    with RingBuffer(
        loaded.maps["cilium_events_v1"], record_size=abi.Event.SIZE, capacity=3 * abi.Event.SIZE + 5
    ) as events:
        assert events.drain() == b""
        for _ in range(7):
            loaded.entries["entry_from_container"].test_run(PACKET)
        assert select.select([events.fd], [], [], 1)[0] == [events.fd]
        drained = [events.drain() for _ in range(4)]
        assert [len(data) // abi.Event.SIZE for data in drained] == [3, 3, 1, 0]
        stamps = [
            abi.Event.unpack(data[at : at + abi.Event.SIZE]).timestamp
            for data in drained
            for at in range(0, len(data), abi.Event.SIZE)
        ]
        assert stamps == sorted(stamps)
        assert (events.records, events.other_records) == (7, 0)
    with pytest.raises(ValueError, match="is closed"):
        events.drain()


def test_records_of_another_size_are_counted_not_copied(loaded: Generation) -> None:
    """A consumer of another version never reads shifted fields."""
    with RingBuffer(loaded.maps["cilium_events_v1"], record_size=abi.Event.SIZE - 8) as events:
        loaded.entries["entry_from_container"].test_run(PACKET)
        assert events.drain() == b""
        assert events.other_records == 1


# -- links -------------------------------------------------------------------------------------


def test_the_probe_for_tcx_is_right(loaded: Generation, device: int) -> None:
    """It touches no device; attaching tells the same."""
    if tcx_supported():
        loaded.attach_device(device, ingress="entry_from_container")
    else:
        with pytest.raises(BpfError, match="EINVAL"):
            loaded.attach_device(device, ingress="entry_from_container")


def test_entry_programs_are_attached_once_and_then_replaced(
    tcx: None, loaded: Generation, pins: Pins, device: int
) -> None:
    """The link stays the same kernel object, its program is the new one."""
    loaded.attach_device(device, ingress="entry_from_container", egress="entry_to_container")
    pin = generations.device_pin(pins, device, TcxHook.INGRESS)
    with Link.from_pin(pin) as link:
        before = link.info
    assert before.ifindex == device
    assert before.prog_id == loaded.entries["entry_from_container"].info.id
    with Generation.load(pins, config={}) as second:
        second.attach_device(device, ingress="entry_from_container", egress="entry_to_container")
        with Link.from_pin(pin) as link:
            assert link.info.id == before.id
            assert link.info.prog_id == second.entries["entry_from_container"].info.id
    assert len(list(pins.links.iterdir())) == 2
    detach_device(pins, device)
    assert list(pins.links.iterdir()) == []


def test_a_link_of_a_vanished_device_is_replaced(
    tcx: None, loaded: Generation, pins: Pins, device: int
) -> None:
    """The pin of a gone device says ifindex 0 and does not stand in the way."""
    loaded.attach_device(device, ingress="entry_from_container")
    pin = generations.device_pin(pins, device, TcxHook.INGRESS)
    subprocess.run([IP_TOOL, "link", "del", "h1left"], check=True)
    with Link.from_pin(pin) as link:
        assert link.info.detached
    command = [
        IP_TOOL,
        "link",
        "add",
        "h1left",
        "index",
        str(device),
        "type",
        "veth",
        "peer",
        "name",
        "h1right",
    ]
    subprocess.run(command, check=True)
    loaded.attach_device(device, ingress="entry_from_container")
    with Link.from_pin(pin) as link:
        assert link.info.ifindex == device
    detach_all(pins)


def test_attaching_to_a_missing_device_says_which(tcx: None) -> None:
    """ENODEV becomes NotFound with program, index and direction."""
    with Object.open("entry") as source:
        source.load()
        with (
            source.program("entry_from_netdev") as program,
            pytest.raises(NotFound, match="entry_from_netdev on ifindex 999999 egress"),
        ):
            TcxLink.attach(program, ifindex=999999, hook=TcxHook.EGRESS)


def test_socket_programs_are_attached_to_a_control_group(
    loaded: Generation, pins: Pins, cgroup: Path
) -> None:
    """One link per program; a second agent replaces them in place."""
    loaded.attach_cgroup(cgroup)
    pinned = sorted(path.name for path in pins.links.iterdir())
    assert "cgroup_sock_connect4" in pinned
    with Link.from_pin(pins.links / "cgroup_sock_connect4") as link:
        before = link.info
    assert before.cgroup_id == cgroup.stat().st_ino
    with Generation.load(pins, config={}) as second:
        second.attach_cgroup(cgroup)
        with Link.from_pin(pins.links / "cgroup_sock_connect4") as link:
            assert link.info.id == before.id
            assert link.info.prog_id == second.programs["sock_connect4"].info.id
    assert sorted(path.name for path in pins.links.iterdir()) == pinned
    detach_all(pins)


def test_without_the_programs_of_an_object_its_maps_are_there(pins: Pins, cgroup: Path) -> None:
    """What is left to kube-proxy has rows, which others read and the next agent goes on with."""
    with Generation.load(pins, config={}, max_entries=SMALL, without=frozenset({"sock"})) as loaded:
        loaded.activate()
        pins.commit()
        assert {name for name in loaded.programs if name.startswith("sock_")} == set()
        assert set(loaded.maps) == {name for name in abi.MAPS if name.startswith("cilium_")}
        loaded.attach_cgroup(cgroup)
        assert list(pins.links.glob("cgroup_*")) == []
    with Generation.load(pins, config={}) as second:
        assert "sock_connect4" in second.programs


def test_this_kernel_lacks_nothing_for_services() -> None:
    """Nor does any from 5.10 on that is configured for it; a function nobody has is told from one that is."""
    assert service_lacks() == {}
    assert has_kernel_function("bpf_prog_run") or has_kernel_function("tcp_v4_connect")
    assert not has_kernel_function("cil_never_was")


def test_a_missing_control_group_says_which_option(loaded: Generation) -> None:
    """The operator reads --cgroup-root."""
    with pytest.raises(NotFound, match="--cgroup-root"):
        CgroupLink.attach(loaded.programs["sock_connect4"], cgroup=Path("/nonexistent"))
    with U64Array(loaded.maps["cilium_node_state_v1"]) as state:
        assert state[abi.NodeState.NODE_STATE_GENERATION] == 1
