# SPDX-License-Identifier: Apache-2.0
"""What ``bench services`` says of samples: which goals are asked of how many services, and what met them."""

import pytest

from bench import rounds
from bench.connecting import ASKED, DIRECT, DIRECT_INSIDE, MANY, latency_goals, named, rate_goals, sections
from bench.many import slice_of
from bench.paths import CILIUMD
from bench.programming import Amount, Measured, programmed, resting
from bench.rounds import Rounds
from bench.sides import IPTABLES, MODES, NFTABLES

ROUNDS = 8


def samples(crowd, *, slower=1.0):
    """As if ciliumd took 10 us with few services, *slower* times that with a crowd, and the others 20."""
    taken = {DIRECT: 10.0, DIRECT_INSIDE: 10.0}
    for services, factor in ((ASKED, 1.0), (crowd, slower)):
        taken[named(CILIUMD, services)] = 10.0 * factor
        taken |= {named(name, services): 20.0 for name in MODES}
    taken[rounds.CONTROL] = 20.0
    columns = {
        name: {"connect_us": [us] * ROUNDS, "per_second": [1e6 / us] * ROUNDS} for name, us in taken.items()
    }
    return Rounds(columns)


def figures(section):
    """Figures by their names."""
    return {one.name: one for one in section.figures}


@pytest.mark.parametrize("goals", [latency_goals, rate_goals])
def test_goals_of_ten_thousand_services_are_asked_of_no_smaller_crowd(goals):
    """With few services something is asked in either case."""
    assert any(goals(ASKED, crowded=False).values())
    assert any(goals(MANY, crowded=True).values())
    assert not any(goals(1000, crowded=True).values())


def test_connections_are_compared_to_the_peers_of_as_many_services():
    """Two sections of the same rounds: time down, rate up."""
    latency, rate = sections(samples(MANY), ASKED, MANY)
    assert (latency.case, rate.case) == ("P4", "P3")
    against = figures(latency)[f"connect() p50, {MANY}: ciliumd / {named(NFTABLES, MANY)}"]
    assert (against.value, against.met) == (0.5, True)
    against = figures(rate)[f"connections/s, {ASKED}: ciliumd / {named(IPTABLES, ASKED)}"]
    assert (against.value, against.met) == (2.0, True)
    assert figures(rate)[f"connections/s, {MANY}: ciliumd / {named(IPTABLES, MANY)}"].met is False


def test_what_grows_with_the_services_is_told():
    """A crowd that costs a tenth more misses what is asked of it, and of a smaller one nothing is asked."""
    (latency, _), (smaller, _) = (sections(samples(n, slower=1.1), ASKED, n) for n in (MANY, 1000))
    grown = figures(latency)[f"{CILIUMD}: {MANY} services / {ASKED}"]
    assert (grown.value, grown.met) == (1.1, False)
    assert figures(smaller)[f"{CILIUMD}: 1000 services / {ASKED}"].met is None


def taken(cold, new, writes):
    """As if ciliumd was so fast, and the others took 200 s and a second."""
    rest = {"Pss": 100.0, "Pss_Anon": 50.0, "peak": 150.0, "cpu": 0.5}
    ours = Measured(cold=[cold] * 2, new=[new] * 4, writes=[writes], rows=[writes], programs=[0], rest=rest)
    peer = Measured(cold=[200.0] * 2, new=[1000.0] * 4, programs=[3], rest=rest)
    return {CILIUMD: ours, IPTABLES: peer, NFTABLES: peer}


@pytest.mark.parametrize(("cold", "new", "writes", "met"), [(10.0, 50.0, 3, True), (21.0, 101.0, 4, False)])
def test_programming_is_judged_by_its_slowest(cold, new, writes, met):
    """The start, a new service, and one endpoint less."""
    seen = figures(programmed(taken(cold, new, writes), Amount(MANY, 2, 4, 1)))
    judged = [one for name, one in seen.items() if one.goal]
    assert [one.met for one in judged] == [met] * 5
    assert seen[f"start to all answering: ciliumd / {NFTABLES}"].value == cold / 200


def test_of_a_smaller_cluster_only_the_change_of_an_endpoint_is_judged():
    """It has to write as little whatever else there is."""
    seen = programmed(taken(10.0, 50.0, 3), Amount(1000, 2, 4, 1)).figures
    assert {one.name for one in seen if one.goal} == {
        "one endpoint less: calls that write maps",
        "one endpoint less: rows that differ",
    }


def test_peers_at_rest_are_reported_and_not_judged():
    """Goals of memory and processor time are ours."""
    section = resting(taken(1.0, 1.0, 1), Amount(MANY, 2, 4, 1))
    assert {one.name for one in section.figures if one.goal} == {
        f"{CILIUMD}: {what}" for what in ("PSS", "peak RSS", "CPU")
    }


def test_no_two_services_share_a_backend():
    """A prober that is answered knows by whom."""
    seen = [at for number in range(300) for one in slice_of(number)["endpoints"] for at in one["addresses"]]
    assert len(seen) == len(set(seen)) == 3000
