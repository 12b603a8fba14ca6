# SPDX-License-Identifier: Apache-2.0
"""What should hang and does not, and its repair, with the kernel's answers told."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from ciliumd.bpf.errors import BpfError, NotFound
from ciliumd.bpf.link import TcxHook
from ciliumd.daemon import attachments as module
from ciliumd.daemon.attachments import (
    LEGACY_TC,
    TCX,
    Attachments,
    Missing,
    host_device,
    native_device,
    pod_device,
)
from ciliumd.daemon.behind import LATEST_SECONDS
from ciliumd.net import links, tc
from ciliumd.net.errors import NetError
from unit.daemon import nodes

REFUSED = BpfError("attach", "veth", 22)


class FakePins:
    """Names of pins."""

    def link(self, *words):
        """As ``Pins.link``."""
        return Path("/pins") / "_".join(map(str, words))


class Kernel:
    """Links by pin, filters by device, and a generation that makes them."""

    def __init__(self):
        self.links = {}
        self.filters = {}
        self.refuses = {}
        self.attached = []
        self.pins = FakePins()
        self.number = 1
        self.entries = {
            name: SimpleNamespace(fd=number)
            for number, name in enumerate(
                (
                    *("entry_from_container", "entry_to_container", "entry_from_host"),
                    *("entry_from_netdev", "entry_to_netdev"),
                ),
                10,
            )
        }
        self.programs = {
            "sock4_connect": SimpleNamespace(section="cgroup/connect4"),
            "hook_lxc": SimpleNamespace(section="tc"),
        }
        self.before_answer = None
        self.gone = set()

    # ---- the generation ----------------------------------------------------------------------

    def attach_device(self, ifindex, *, ingress=None, egress=None):
        """As ``Generation.attach_device``."""
        if error := self.refuses.get(ifindex):
            raise error
        self.attached.append(ifindex)
        for hook, name in ((TcxHook.INGRESS, ingress), (TcxHook.EGRESS, egress)):
            if name is not None:
                self.links[str(self.pins.link("tcx", ifindex, hook.name.lower()))] = ifindex

    def detach_device(self, ifindex):
        """As ``Generation.detach_device``."""
        for hook in TcxHook:
            self.links.pop(str(self.pins.link("tcx", ifindex, hook.name.lower())), None)

    def attach_cgroup(self, cgroup):
        """As ``Generation.attach_cgroup``."""
        self.attached.append(str(cgroup))
        self.links[str(self.pins.link("cgroup", "sock4_connect"))] = cgroup.stat().st_ino

    # ---- links and filters -------------------------------------------------------------------

    def link_from_pin(self, pin):
        """As ``Link.from_pin``; the info says the same for devices and control groups."""
        if self.before_answer:
            self.before_answer()
        target = self.links.get(str(pin))
        if target is None:
            raise NotFound("open", str(pin), 2)
        return _Held(SimpleNamespace(ifindex=target, cgroup_id=target))

    async def call(self, function, ifindex, **settings):
        """As ``NetlinkThread.call`` for tc."""
        await asyncio.sleep(0)
        if function is links.link_by_index:
            return None if ifindex in self.gone else SimpleNamespace(ifindex=ifindex)
        if function is tc.list_filters:
            if self.before_answer:
                self.before_answer()
            return tuple(tc.Filter(ifindex, one, "x") for one in self.filters.get(ifindex, ()))
        if error := self.refuses.get(ifindex):
            raise error
        if function is tc.detach_filter:
            self.filters.get(ifindex, set()).discard(settings["direction"])
            return None
        assert function is tc.attach_filter
        self.attached.append(ifindex)
        self.filters.setdefault(ifindex, set()).add(settings["direction"])
        return None


class _Held:
    """An open link."""

    def __init__(self, info):
        self.info = info

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.fixture
def kernel(monkeypatch):
    """The kernel of a test."""
    kernel = Kernel()
    monkeypatch.setattr(module, "Link", SimpleNamespace(from_pin=kernel.link_from_pin))
    monkeypatch.setattr(
        module,
        "detach_device",
        lambda pins, ifindex: [
            kernel.links.pop(str(pins.link("tcx", ifindex, hook.name.lower())), None) for hook in TcxHook
        ],
    )
    return kernel


@pytest.fixture
def run(kernel):
    """Run ``scenario(attachments)`` with a writer thread: ``run(scenario, tcx=..., cgroup=...)``."""

    def start(scenario, *, tcx=True, cgroup=None, clock=None):
        async def body():
            with ThreadPoolExecutor(1) as writer:
                one = Attachments(
                    kernel,
                    netlink=kernel,
                    executor=writer,
                    tcx=tcx,
                    cgroup=cgroup,
                    clock=clock or nodes.Clock(),
                )
                return await scenario(one)

        return asyncio.run(body())

    return start


BOTH = pytest.mark.parametrize("tcx", [True, False], ids=[TCX, LEGACY_TC])


@BOTH
def test_what_was_attached_is_not_missing(run, kernel, tcx):
    """Pods have both hooks, cilium_net one, native devices both."""

    async def scenario(one):
        for device in (pod_device(7, "shop/web"), host_device(8), native_device(9, "eth0")):
            await one.attach(device)
        assert one.mode == (TCX if tcx else LEGACY_TC)
        assert set(one.devices) == {7, 8, 9}
        assert await one.missing() == []
        assert await one.repair() == []

    run(scenario, tcx=tcx)
    assert kernel.attached == ([7, 8, 9] if tcx else [7, 7, 8, 9, 9])


@BOTH
def test_what_somebody_took_away_is_named_and_hung_again(run, kernel, tcx):
    """The message names program, owner and direction."""

    async def scenario(one):
        await one.attach(pod_device(7, "shop/web"))
        await one.attach(host_device(8))
        if tcx:
            del kernel.links["/pins/tcx_7_egress"]
        else:
            kernel.filters[7].remove(tc.Direction.EGRESS)
        expected = [Missing(7, "entry_to_container on shop/web (egress)")]
        assert await one.missing() == expected
        assert await one.repair() == expected
        assert await one.missing() == []

    run(scenario, tcx=tcx)


def test_a_link_to_another_device_is_missing_here(run, kernel):
    """The pin of a device that vanished shows interface 0."""

    async def scenario(one):
        await one.attach(host_device(8))
        kernel.links["/pins/tcx_8_ingress"] = 0
        assert [missing.ifindex for missing in await one.missing()] == [8]

    run(scenario)


@pytest.mark.parametrize("stubborn", [7, 8, 9])
@BOTH
def test_one_device_that_refuses_does_not_keep_the_others_waiting(run, kernel, tcx, stubborn):
    """They are repaired; the error is told afterwards."""

    async def scenario(one):
        for ifindex in (7, 8, 9):
            await one.attach(pod_device(ifindex, f"shop/{ifindex}"))
        kernel.links.clear()
        kernel.filters.clear()
        kernel.refuses[stubborn] = REFUSED
        with pytest.raises(BpfError, match="attach veth"):
            await one.repair()
        assert {missing.ifindex for missing in await one.missing()} == {stubborn}

    run(scenario, tcx=tcx)


@BOTH
def test_devices_that_come_and_go_while_the_kernel_is_asked_do_no_harm(run, kernel, tcx):
    """A pod added meanwhile is not looked at, one taken away is not missing."""

    async def scenario(one):
        for ifindex in (7, 8, 9):
            await one.attach(host_device(ifindex))
        kernel.links.clear()
        kernel.filters.clear()

        def change():
            one._devices.pop(7, None)
            one._devices[10 + len(one._devices)] = host_device(10 + len(one._devices))

        kernel.before_answer = change
        assert {missing.ifindex for missing in await one.missing()} == {8, 9}
        kernel.before_answer = None

    run(scenario, tcx=tcx)


def test_what_was_detached_is_not_missed(run, kernel):
    """Nor hung again."""

    async def scenario(one):
        await one.attach(pod_device(7, "shop/web"))
        await one.detach(7)
        assert one.devices == {}
        assert await one.repair() == []
        assert kernel.links == {}

    run(scenario)


def test_a_device_that_refused_at_first_is_attached_by_repair(run, kernel):
    """Whoever asked was told, and the wish is remembered."""

    async def scenario(one):
        kernel.refuses[7] = REFUSED
        with pytest.raises(BpfError):
            await one.attach(pod_device(7, "shop/web"))
        kernel.refuses.clear()
        assert len(await one.repair()) == 2
        assert await one.missing() == []

    run(scenario)


@pytest.mark.parametrize("tcx", [True, False])
def test_a_device_that_has_gone_is_let_go_by_repair(run, kernel, tcx):
    """Whoever removed it failed midway: nothing is wanted on it for ever."""

    async def scenario(one):
        await one.attach(pod_device(7, "default/web"))
        kernel.links.clear()
        kernel.filters.clear()
        kernel.gone.add(7)
        kernel.refuses[7] = REFUSED
        repaired = await one.repair()
        return repaired, one.devices, await one.missing()

    assert run(scenario, tcx=tcx) == ([], {}, [])


@pytest.fixture
def run_new(run, kernel):
    """Run ``scenario(attachments, clock)`` with a new pod's device 7."""

    def start(scenario):
        clock = nodes.Clock()

        async def body(one):
            await one.attach_new(pod_device(7, "shop/web"))
            await scenario(one, clock)

        run(body, clock=clock)

    return start


BOTH_WAYS = set(tc.Direction)


def test_a_new_pod_has_filters_at_once_and_links_later(run_new, kernel):
    """Nothing of it is missing at any time, and in the end no filter is left."""

    async def scenario(one, clock):
        assert (kernel.filters, kernel.links) == ({7: BOTH_WAYS}, {})
        assert await one.missing() == await one.missing_on(7) == []
        await one.catch_up()
        assert kernel.links == {}
        clock.now += LATEST_SECONDS
        await one.catch_up()
        assert (kernel.filters, set(kernel.links.values())) == ({7: set()}, {7})
        assert await one.missing() == []
        attached = len(kernel.attached)
        await one.catch_up()
        assert len(kernel.attached) == attached

    run_new(scenario)


def test_a_filter_of_a_new_pod_that_somebody_took_away_is_missed(run_new, kernel):
    """Repair hangs links, and takes the other filter away."""

    async def scenario(one, _):
        kernel.filters[7].remove(tc.Direction.EGRESS)
        expected = [Missing(7, "entry_to_container on shop/web (egress)")]
        assert await one.missing_on(7) == expected
        assert await one.repair() == expected
        assert (kernel.filters, set(kernel.links.values())) == ({7: set()}, {7})

    run_new(scenario)


def test_a_new_pod_that_goes_gets_no_links(run_new, kernel):
    """Nor does one that goes while they are hung keep them."""

    async def scenario(one, clock):
        await one.detach(7)
        clock.now += LATEST_SECONDS
        await one.catch_up()
        assert kernel.links == {}
        await one.attach_new(pod_device(7, "shop/web"))
        clock.now += LATEST_SECONDS
        catching = asyncio.ensure_future(one.catch_up())
        await asyncio.sleep(0)
        await one.detach(7)
        await catching
        assert (kernel.links, one.devices) == ({}, {})

    run_new(scenario)


def test_links_that_cannot_be_hung_are_told_and_tried_again(run_new, kernel):
    """The filters hold meanwhile, so nothing is missing; other devices get theirs first."""

    async def scenario(one, clock):
        await one.attach_new(pod_device(8, "shop/db"))
        clock.now += LATEST_SECONDS
        kernel.refuses[7] = REFUSED
        with pytest.raises(BpfError):
            await one.catch_up()
        clock.now += LATEST_SECONDS
        with pytest.raises(BpfError):
            await one.catch_up()
        assert set(kernel.links.values()) == {8}
        assert kernel.filters == {7: BOTH_WAYS, 8: set()}
        assert await one.missing() == []
        kernel.refuses.clear()
        clock.now += LATEST_SECONDS
        await one.catch_up()
        assert (kernel.filters[7], set(kernel.links.values())) == (set(), {7, 8})

    run_new(scenario)


def test_a_kernel_without_filters_has_links_at_once(run, kernel):
    """tcx needs neither clsact nor its programs."""

    async def scenario(one):
        call = kernel.call

        async def refuse(function, *arguments, **settings):
            if function is tc.attach_filter:
                raise NetError("attach", "Operation not supported", errno=95)
            return await call(function, *arguments, **settings)

        kernel.call = refuse
        await one.attach_new(pod_device(7, "shop/web"))
        assert set(kernel.links.values()) == {7}
        assert await one.missing() == []

    run(scenario)


def test_without_tcx_a_new_pod_has_filters_for_good(run, kernel):
    """As any other device."""

    async def scenario(one):
        await one.attach_new(pod_device(7, "shop/web"))
        await one.catch_up()
        assert (kernel.filters, kernel.links) == ({7: BOTH_WAYS}, {})
        assert await one.missing() == []

    run(scenario, tcx=False)


def test_socket_programs_hang_on_their_control_group(run, kernel, tmp_path):
    """Missing, attached, and missing again when the group was made anew."""

    async def scenario(one):
        assert not await one.socket_lb()
        assert await one.missing() == [Missing(0, f"sock4_connect on {tmp_path}")]
        await one.attach_cgroup()
        assert await one.socket_lb()
        kernel.links["/pins/cgroup_sock4_connect"] = 12345
        assert not await one.socket_lb()
        assert len(await one.repair()) == 1
        assert await one.socket_lb()

    run(scenario, cgroup=tmp_path)


def test_without_a_control_group_nothing_of_it_is_missing(run, kernel):
    """Socket load balancing is off, and says so."""

    async def scenario(one):
        await one.attach_cgroup()
        assert await one.missing() == []
        assert not await one.socket_lb()

    run(scenario)
    assert kernel.attached == []


def test_a_control_group_that_is_gone_has_no_programs(run, kernel, tmp_path):
    """Even if a link still shows the number 0."""

    async def scenario(one):
        kernel.links["/pins/cgroup_sock4_connect"] = 0
        assert not await one.socket_lb()
        assert len(await one.missing()) == 1

    run(scenario, cgroup=tmp_path / "gone")
