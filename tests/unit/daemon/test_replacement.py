# SPDX-License-Identifier: Apache-2.0
"""Which services are left to kube-proxy, by what is written and what the kernel lacks."""

import pytest

from ciliumd.daemon.replacement import KernelLacks, Replacement, settle
from ciliumd.daemon.settings import Settings, read_settings
from ciliumd.model.service import EVERY_KIND, ServiceKind

LACKS = {"hostServices": "socket programs", "nodePort": "bpf_fib_lookup"}
EVERYTHING = ("translates_sockets", "serves_node_ports", "serves_external_ips", "serves_host_ports")


def served(*words):
    """What is served with these words on the command line."""
    settings = read_settings(list(words))
    return [name for name in EVERYTHING if getattr(settings, name)]


@pytest.mark.parametrize("word", ["true", "strict", "probe", "True"])
def test_everything(word):
    """A kind that is switched off is served all the same, unless it is to be probed."""
    settings = read_settings([f"--kube-proxy-replacement={word}"])
    assert served(f"--kube-proxy-replacement={word}") == list(EVERYTHING)
    assert settings.replaces_kube_proxy
    assert not settings.host_legacy_routing
    off = served(f"--kube-proxy-replacement={word}", "--enable-node-port=false")
    assert ("serves_node_ports" in off) == (word != "probe")


@pytest.mark.parametrize("word", ["false", "disabled"])
def test_nothing_but_sockets_where_a_control_group_is_named(word):
    """Those are the control group's business, unless it is said that they are not."""
    assert served(f"--kube-proxy-replacement={word}", "--enable-node-port=true") == ["translates_sockets"]
    assert served(f"--kube-proxy-replacement={word}", "--bpf-lb-sock=false") == []
    assert served("--no-kube-proxy-replacement") == ["translates_sockets"]
    assert served("--kube-proxy-replacement", word) == ["translates_sockets"]
    assert served("--kube-proxy-replacement", "--debug") == list(EVERYTHING)


@pytest.mark.parametrize(
    ("switch", "kind"),
    [
        ("bpf-lb-sock", "translates_sockets"),
        ("enable-node-port", "serves_node_ports"),
        ("enable-external-ips", "serves_external_ips"),
        ("enable-host-port", "serves_host_ports"),
    ],
)
def test_partly_is_what_is_said_of_each_kind(switch, kind):
    """Without a word about any it is nothing; kube-proxy is there, so packets go through the stack."""
    assert served("--kube-proxy-replacement=partial") == []
    assert served("--kube-proxy-replacement=partial", f"--{switch}=true") == [kind]
    settings = read_settings(["--kube-proxy-replacement=partial", f"--{switch}=true"])
    assert (settings.replaces_kube_proxy, settings.host_legacy_routing) == (False, True)


@pytest.mark.parametrize(
    ("switch", "kinds"),
    [
        ("bpf-lb-sock", set()),
        ("enable-node-port", {ServiceKind.NODE_PORT, ServiceKind.LOAD_BALANCER}),
        ("enable-external-ips", {ServiceKind.EXTERNAL_IP}),
        ("enable-host-port", {ServiceKind.HOST_PORT}),
    ],
)
def test_frontends_are_of_the_kinds_that_are_served(switch, kinds):
    """Cluster addresses always are; packets from outside are looked at if any other kind is."""
    assert read_settings([]).kinds_served == EVERY_KIND
    settings = read_settings(["--kube-proxy-replacement=partial", f"--{switch}=true"])
    assert settings.kinds_served == {ServiceKind.CLUSTER_IP, *kinds}
    assert settings.serves_outside == bool(kinds)


@pytest.mark.parametrize("word", ["true", "strict", "partial"])
def test_agent_does_not_start_without_what_it_needs(word):
    """All that is missing is named, and what to do."""
    with pytest.raises(KernelLacks) as refused:
        settle(Replacement(word), LACKS, pytest.fail)
    for text in (word, "hostServices needs socket programs", "nodePort needs bpf_fib_lookup", "write probe"):
        assert text in str(refused.value)


def test_probing_leaves_what_is_missing_to_kube_proxy():
    """Each with a line; the rest is served."""
    told = []
    changes = settle(Replacement.PROBE, LACKS, lambda kind, what: told.append((kind, what)))
    settings = Settings(kube_proxy_replacement=Replacement.PROBE).model_copy(update=changes)
    assert told == list(LACKS.items())
    assert [name for name in EVERYTHING if getattr(settings, name)] == [
        "serves_external_ips",
        "serves_host_ports",
    ]
    assert settings.host_legacy_routing


@pytest.mark.parametrize("word", list(Replacement))
def test_kernel_that_has_all_changes_nothing(word):
    """Nobody is told anything."""
    assert settle(word, {}, pytest.fail) == {}


def test_only_what_is_to_be_served_matters():
    """Who serves node ports alone does without sockets."""
    settings = read_settings(["--kube-proxy-replacement=partial", "--enable-node-port=true"])
    assert settings.served_here == {"nodePort"}


@pytest.mark.parametrize(
    ("word", "today", "shown"),
    [
        ("true", "", "True"),
        ("false", "", "False"),
        ("partial", "", "Partial"),
        ("strict", "true", "Strict"),
        ("probe", "true", "Probe"),
        ("disabled", "false", "Disabled"),
    ],
)
def test_words_of_old_and_of_today(word, today, shown):
    """The status says what was written."""
    assert (Replacement(word).today, Replacement(word).shown) == (today, shown)


def test_a_word_that_is_none_is_refused():
    """By its option."""
    with pytest.raises(Exception, match="kube-proxy-replacement"):
        read_settings(["--kube-proxy-replacement=maybe"])
