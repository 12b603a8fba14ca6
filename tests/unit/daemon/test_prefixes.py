# SPDX-License-Identifier: Apache-2.0
"""Prefixes first, rules one round later: case by case, over maps in memory."""

from ipaddress import ip_network

from ciliumd.bpf.policy_maps import CLASSES, split_key
from ciliumd.daemon import stages
from ciliumd.desired.policy.versions import LONGEST_WAIT
from ciliumd.model.identity import Reserved
from unit.daemon import nodes
from unit.daemon.kernel import Kernel, with_pod
from unit.daemon.nodes import EGRESS, allow, cidr, says

WORLD = int(Reserved.WORLD)
WHOLE, TEN, NEXT = "0.0.0.0/0", ip_network("10.0.0.0/8"), ip_network("172.16.0.0/12")


def except_ten(kernel):
    """The same pod may reach the world but for a prefix that nobody has named before."""
    nodes.add_policy(kernel.tables, allow("world", cidr(WHOLE, "10.0.0.0/8")))


def test_an_exception_is_in_the_ipcache_a_round_before_its_rule():
    """Meanwhile the endpoint goes on as before, whether packets are told apart already or not."""
    kernel = with_pod()
    before = kernel.word()
    except_ten(kernel)
    kernel.round()
    ten = kernel.number(TEN)
    assert kernel.written(TEN) == ten
    assert kernel.word() == before
    assert (
        says(kernel.node, 1, ten, direction=EGRESS)
        == says(kernel.node, 1, WORLD, direction=EGRESS)
        == "ALLOW"
    )
    assert kernel.node.plan.policy.waiting == {1}

    kernel.round()
    assert kernel.word() != before
    assert says(kernel.node, 1, ten, direction=EGRESS) == "DEFAULT_DENY"
    assert says(kernel.node, 1, WORLD, direction=EGRESS) == "ALLOW"
    assert kernel.node.plan.policy.waiting == frozenset()


def test_the_next_round_is_asked_for_once():
    """As soon as the rows are written, and not again."""
    kernel = with_pod()
    except_ten(kernel)
    kernel.round()
    assert kernel.reconciler._dirty
    kernel.round()
    assert not kernel.reconciler._dirty


def test_what_was_judged_by_a_prefix_is_judged_so_by_one_inside():
    """A row inside a denied prefix opens nothing under rules that do not know it."""
    kernel = Kernel()
    nodes.add_pod(kernel.tables, 1, {"app": "web"})
    nodes.add_policy(kernel.tables, allow("world", cidr(WHOLE, "10.0.0.0/8")))
    kernel.round(2)
    inner = ip_network("10.1.0.0/16")
    nodes.add_policy(kernel.tables, allow("world", cidr(WHOLE, "10.0.0.0/8"), cidr("10.1.0.0/16")))
    kernel.round()
    assert kernel.written(inner) == kernel.number(inner)
    assert says(kernel.node, 1, kernel.number(inner), direction=EGRESS) == "DEFAULT_DENY"
    kernel.round()
    assert says(kernel.node, 1, kernel.number(inner), direction=EGRESS) == "ALLOW"


def test_a_new_pod_is_shut_until_its_prefixes_are_there():
    """It had no rules that it could go on under."""
    kernel = Kernel()
    except_ten(kernel)
    nodes.add_pod(kernel.tables, 1, {"app": "web"})
    kernel.round()
    assert kernel.word() is None
    assert 1 in kernel.node.plan.policy.waiting
    kernel.round()
    assert says(kernel.node, 1, kernel.number(TEN), direction=EGRESS) == "DEFAULT_DENY"


def test_rules_of_others_do_not_wait():
    """Only rules that name the prefix."""
    kernel = with_pod()
    nodes.add_pod(kernel.tables, 2, {"app": "db"})
    kernel.round(2)
    except_ten(kernel)
    nodes.add_policy(kernel.tables, allow("db", cidr("::/0"), app="db"))
    kernel.round()
    assert kernel.node.plan.policy.waiting == {1}
    assert says(kernel.node, 2, WORLD, direction=EGRESS) == "DEFAULT_DENY"


def test_an_exception_that_does_not_fit_closes_what_it_is_an_exception_of():
    """Nobody waits for a full map: the rules are in force, and the world is shut until there is room."""
    kernel = with_pod()
    lpm = kernel.maps[stages.IPCACHE_LPM]
    lpm.fail = lambda key: None if key in lpm.rows else OSError(7, "map is full")
    except_ten(kernel)
    kernel.round(3)
    assert kernel.node.plan.policy.waiting == frozenset()
    assert says(kernel.node, 1, WORLD, direction=EGRESS) == "DEFAULT_DENY"
    assert says(kernel.node, 1, kernel.number(TEN), direction=EGRESS) == "DEFAULT_DENY"
    assert kernel.tables.problems.get(("CIDR", "", str(TEN))) is not None
    assert not kernel.reconciler.status().in_sync

    lpm.fail = lambda _: None
    kernel.round(40)
    assert says(kernel.node, 1, WORLD, direction=EGRESS) == "ALLOW"
    assert says(kernel.node, 1, kernel.number(TEN), direction=EGRESS) == "DEFAULT_DENY"
    assert kernel.tables.problems.get(("CIDR", "", str(TEN))) is None
    assert kernel.reconciler.status().in_sync


def test_a_deny_that_does_not_fit_denies_what_is_around_it():
    """Its packets cannot be told from the rest."""
    kernel = with_pod()
    lpm = kernel.maps[stages.IPCACHE_LPM]
    lpm.fail = lambda key: None if key in lpm.rows else OSError(7, "map is full")
    deny = nodes.rule(cidr("10.0.0.0/8"), direction=EGRESS, deny=True)
    nodes.add_policy(kernel.tables, nodes.policy("deny", deny, ingress=False))
    kernel.round(3)
    assert says(kernel.node, 1, WORLD, direction=EGRESS) == "DENY"


def test_a_row_goes_after_the_rules_that_name_it():
    """And after the version that tells it apart, which packets may still be judged by."""
    kernel = with_pod()
    except_ten(kernel)
    kernel.round(2)
    nodes.add_policy(kernel.tables, allow("world", cidr(WHOLE)))
    kernel.round()
    assert says(kernel.node, 1, kernel.number(TEN), direction=EGRESS) == "ALLOW"
    assert kernel.written(TEN) is not None
    kernel.round(4)
    assert kernel.written(TEN) is None
    apart = {split_key(key)[0] for key in kernel.maps[stages.POLICY].rows if split_key(key)[1] == CLASSES}
    assert apart <= {kernel.node.plan.policy.versions[1]}


def test_a_row_stays_while_a_word_names_rules_that_name_it():
    """The endpoint could not be told of others."""
    kernel = with_pod()
    except_ten(kernel)
    kernel.round(2)
    kernel.maps[stages.STATES].failures[bytes(4)] = OSError(5, "no")
    nodes.add_policy(kernel.tables, allow("world", cidr(WHOLE)))
    kernel.round(8)
    assert kernel.written(TEN) is not None
    kernel.maps[stages.STATES].failures.clear()
    kernel.round(40)
    assert kernel.written(TEN) is None


def test_a_row_that_takes_up_the_room_goes_for_one_inside_it():
    """Rules that wait for room do not keep what they wait for."""
    kernel = with_pod()
    except_ten(kernel)
    kernel.round(2)
    lpm = kernel.maps[stages.IPCACHE_LPM]
    lpm.capacity = len(lpm.rows)
    nodes.add_policy(kernel.tables, allow("world", cidr(WHOLE, "10.1.0.0/16")))
    kernel.round(40)
    assert kernel.written(TEN) is None
    assert kernel.written(ip_network("10.1.0.0/16")) is not None
    assert says(kernel.node, 1, WORLD, direction=EGRESS) == "ALLOW"


def test_a_row_stays_for_the_round_in_which_one_inside_it_is_written(monkeypatch):
    """Its packets carry that identity if the write fails; afterwards it goes, and more is closed."""
    monkeypatch.setattr("ciliumd.desired.policy.versions.LONGEST_WAIT", 0)
    kernel = with_pod()
    nodes.add_policy(kernel.tables, allow("ten", cidr("10.0.0.0/8"), app="nobody"))
    kernel.round(2)
    lpm = kernel.maps[stages.IPCACHE_LPM]
    lpm.fail = lambda key: None if key in lpm.rows else OSError(7, "map is full")
    kernel.tables.policies.delete(("CNP", "shop", "ten"))
    nodes.add_policy(kernel.tables, allow("world", cidr(WHOLE, "10.1.0.0/16")))
    kernel.round()
    assert kernel.written(TEN) == kernel.number(TEN)
    assert says(kernel.node, 1, kernel.number(TEN), direction=EGRESS) == "DEFAULT_DENY"
    assert says(kernel.node, 1, WORLD, direction=EGRESS) == "ALLOW"
    kernel.round()
    assert says(kernel.node, 1, WORLD, direction=EGRESS) == "DEFAULT_DENY"
    kernel.round(4)
    assert kernel.written(TEN) is None


def test_who_names_other_prefixes_in_every_round_is_not_put_off_for_ever():
    """After some rounds the rules come as closed as it takes."""
    kernel = with_pod()
    before = kernel.word()
    for turn in range(LONGEST_WAIT):
        nodes.add_policy(kernel.tables, allow("world", cidr(WHOLE, f"10.{turn}.0.0/16")))
        kernel.round()
        assert kernel.word() == before
    nodes.add_policy(kernel.tables, allow("world", cidr(WHOLE, "172.16.0.0/12")))
    kernel.round()
    assert kernel.word() != before
    assert says(kernel.node, 1, WORLD, direction=EGRESS) == "DEFAULT_DENY"
    kernel.round()
    assert says(kernel.node, 1, WORLD, direction=EGRESS) == "ALLOW"
    assert says(kernel.node, 1, kernel.number(NEXT), direction=EGRESS) == "DEFAULT_DENY"


def test_rules_that_do_not_fit_leave_their_endpoint_with_rules_that_know_new_prefixes(monkeypatch):
    """It goes on under a version that nobody's rules are behind: a prefix inside a denied one is denied."""
    kernel = Kernel()
    nodes.add_pod(kernel.tables, 1, {"app": "web"})
    deny = nodes.rule(cidr("10.0.0.0/8"), direction=EGRESS, deny=True)
    nodes.add_policy(kernel.tables, nodes.policy("deny", deny, ingress=False))
    kernel.round(2)
    monkeypatch.setattr("ciliumd.desired.policy.versions.too_large", lambda *_: "too large")
    nodes.add_policy(kernel.tables, nodes.policy("more", nodes.rule(nodes.app("db")), ingress=False))
    kernel.round()
    assert kernel.node.plan.policy.versions[1] in kernel.node.plan.policy.states

    nodes.add_policy(kernel.tables, allow("other", cidr("10.1.0.0/16"), app="other"))
    kernel.round(2)
    inner = kernel.number(ip_network("10.1.0.0/16"))
    assert kernel.written(ip_network("10.1.0.0/16")) == inner
    assert says(kernel.node, 1, inner, direction=EGRESS) == "DENY"


def test_a_newcomer_whose_rules_do_not_fit_is_shut_and_ready(monkeypatch):
    """It has no rules of before to go on under: nobody in, nobody out, until its rules fit."""
    kernel = Kernel()
    nodes.add_pod(kernel.tables, 2, {"app": "db"})
    with monkeypatch.context() as narrow:
        narrow.setattr("ciliumd.desired.policy.versions.too_large", lambda *_: "too large")
        nodes.add_policy(kernel.tables, nodes.policy("web", nodes.rule(nodes.app("db"))))
        nodes.add_pod(kernel.tables, 1, {"app": "web"})
        kernel.round()
        assert kernel.node.plan.policy.versions[1] in kernel.node.plan.policy.states
        assert kernel.word() is not None
        assert ("Endpoint", "shop", "pod-1") in kernel.tables.problems
        db = kernel.node.plan.identities[2]
        assert says(kernel.node, 1, db) == says(kernel.node, 1, db, direction=EGRESS) == "DEFAULT_DENY"
    nodes.add_policy(kernel.tables, nodes.policy("web", nodes.rule(nodes.app("db"), nodes.app("cache"))))
    kernel.round()
    assert ("Endpoint", "shop", "pod-1") not in kernel.tables.problems
    assert says(kernel.node, 1, db) == says(kernel.node, 1, db, direction=EGRESS) == "ALLOW"
