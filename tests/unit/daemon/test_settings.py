# SPDX-License-Identifier: Apache-2.0
"""Options: each from the command line and the environment, each wrong value told by the option's name."""

import resource
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from ciliumd.daemon.app import EXIT_FAILED, EXIT_USAGE, main
from ciliumd.daemon.settings import Settings, SettingsInvalid, read_settings

REQUIRED = ["--manifests", "/m"]
OPTIONS = {
    "manifests": ("/elsewhere", Path("/elsewhere")),
    "node-name": ("one", "one"),
    "cluster-name": ("east", "east"),
    "cluster-id": ("3", 3),
    "kubeconfig": ("/etc/kubeconfig", Path("/etc/kubeconfig")),
    "k8s-api-server": ("https://192.0.2.1:6443", "https://192.0.2.1:6443"),
    "k8s-namespace": ("network", "network"),
    "routing-mode": ("tunnel", "tunnel"),
    "tunnel-protocol": ("vxlan", "vxlan"),
    "tunnel-port": ("4789", 4789),
    "ipam": ("kubernetes", "kubernetes"),
    "cluster-pool-ipv4-cidr": (
        "10.1.0.0/16 10.2.0.0/16",
        (IPv4Network("10.1.0.0/16"), IPv4Network("10.2.0.0/16")),
    ),
    "cluster-pool-ipv4-mask-size": ("26", 26),
    "allow-external-addresses": (
        "192.0.2.0/24 2001:db8::/64",
        (IPv4Network("192.0.2.0/24"), IPv6Network("2001:db8::/64")),
    ),
    "kube-proxy-replacement": ("partial", "partial"),
    "kube-proxy-replacement-healthz-bind-address": ("0.0.0.0:10256", "0.0.0.0:10256"),
    "node-port-range": ("31000,31999", (31000, 31999)),
    "enable-policy": ("always", "always"),
    "policy-deny-response": ("icmp", "icmp"),
    "labels": ("k8s:app !k8s:foo", ("k8s:app", "!k8s:foo")),
    "node-labels": ("role !kubernetes.io/hostname", ("role", "!kubernetes.io/hostname")),
    "identity-allocation-mode": ("crd", "crd"),
    "procfs": ("/host/proc", Path("/host/proc")),
    "cni-socket": ("/run/c.sock", Path("/run/c.sock")),
    "write-cni-conf-when-ready": ("/host/05.conflist", Path("/host/05.conflist")),
    "cni-chaining-mode": ("none", "none"),
    "cluster-health-port": ("4241", 4241),
    "health-check-interval": ("1m30s", 90.0),
    "agent-health-port": ("9880", 9880),
    "bpf-root": ("/sys/fs/bpf/mine", Path("/sys/fs/bpf/mine")),
    "cgroup-root": ("/sys/fs/cgroup/mine", Path("/sys/fs/cgroup/mine")),
    "state-dir": ("/state", Path("/state")),
    "api-socket": ("/run/x.sock", Path("/run/x.sock")),
    "pod-cidr": ("10.9.0.0/16", IPv4Network("10.9.0.0/16")),
    "pod-cidr-ipv6": ("fd00:9::/64", IPv6Network("fd00:9::/64")),
    "cluster-pool-ipv6-cidr": ("fd00:8::/48", (IPv6Network("fd00:8::/48"),)),
    "cluster-pool-ipv6-mask-size": ("112", 112),
    "mtu": ("1400", 1400),
    "ipv4-native-routing-cidr": ("10.0.0.0/8", IPv4Network("10.0.0.0/8")),
    "ipv6-native-routing-cidr": ("fd00::/48", IPv6Network("fd00::/48")),
    "attach-mode": ("tc", "tc"),
    "underlay-protocol": ("ipv6", "ipv6"),
    "bpf-ct-max": ("2048", 2048),
    "bpf-nat-max": ("4096", 4096),
    "bpf-lb-map-max": ("512", 512),
    "bpf-ipcache-max": ("1024", 1024),
    "bpf-events-size": ("65536", 65536),
    "conntrack-gc-interval": ("5.5", 5.5),
    "drift-interval": ("7", 7.0),
    "metrics-address": ("", ""),
    "log-level": ("debug", "debug"),
    "log-format": ("json", "json"),
    "loopback-ipv4": ("169.254.1.1", IPv4Address("169.254.1.1")),
    "loopback-ipv6": ("100::7", IPv6Address("100::7")),
}
SWITCHES = {
    "enable-ipv4": True,
    "enable-ipv4-masquerade": True,
    "enable-ipv6": False,
    "enable-node-selector-labels": False,
    "enable-ipv6-masquerade": True,
    "bpf-lb-sock": None,
    "enable-node-port": None,
    "enable-external-ips": None,
    "enable-host-port": None,
    "enable-health-check-nodeport": True,
    "node-port-bind-protection": True,
    "enable-auto-protect-node-port-range": True,
    "bpf-lb-sock-hostns-only": False,
    "bpf-lb-sock-terminate-pod-connections": True,
    "k8s-service-proxy-name": "",
    "lb-sock-terminate-all-protos": False,
    "enable-host-legacy-routing": False,
    "bpf-lb-external-clusterip": False,
    "cni-exclusive": True,
    "enable-health-checking": True,
    "policy-audit-mode": False,
    "bpf-events-drop-enabled": True,
    "bpf-events-policy-verdict-enabled": True,
    "bpf-events-trace-enabled": True,
    "enable-endpoint-health-checking": True,
    "debug": False,
}
INVALID = {
    "cluster-name": ["East", "-a", "a" * 33, ""],
    "cluster-id": ["256", "-1"],
    "routing-mode": ["vxlan", "disabled"],
    "tunnel-protocol": ["geneve"],
    "tunnel-port": ["0", "65536"],
    "ipam": ["eni"],
    "cluster-pool-ipv4-cidr": ["10.0.0.0/28", "10.0.0.1/8", "fd00::/64"],
    "cluster-pool-ipv4-mask-size": ["31", "7"],
    "allow-external-addresses": ["192.0.2.1/24", "everything"],
    "node-port-range": ["30000", "2,1", "0,9", "1,2,3"],
    "enable-policy": ["sometimes"],
    "policy-deny-response": ["reset", ""],
    "identity-allocation-mode": ["kvstore"],
    "cni-chaining-mode": ["aws-cni"],
    "cluster-health-port": ["0"],
    "health-check-interval": ["0s", "1y"],
    "agent-health-port": ["http"],
    "enable-ipv4": ["false"],
    "underlay-protocol": ["vxlan"],
    "pod-cidr": ["10.0.0.0/31", "10.0.0.1/32", "10.0.0.5/24", "fd00::/64", "ten"],
    "pod-cidr-ipv6": ["fd00::/127", "fd00::1/64", "10.0.0.0/24"],
    "cluster-pool-ipv6-cidr": ["fd00::/124", "10.0.0.0/8"],
    "cluster-pool-ipv6-mask-size": ["127", "63", "80"],
    "enable-ipv6": ["maybe"],
    "mtu": ["-1", "65536", "big"],
    "ipv4-native-routing-cidr": ["10.0.0.0/99"],
    "ipv6-native-routing-cidr": ["fd00::/129", "10.0.0.0/8"],
    "attach-mode": ["xdp"],
    "bpf-ct-max": ["1023", "16777217", ""],
    "bpf-nat-max": ["0"],
    "bpf-lb-map-max": ["-256"],
    "bpf-ipcache-max": ["1.5"],
    "bpf-events-size": ["5000", "4095", "2147483648"],
    "conntrack-gc-interval": ["0", "-1", "soon"],
    "drift-interval": ["0", "nan", "inf"],
    "metrics-address": ["9962", "localhost:http", "127.0.0.1:70000", ":-1"],
    "log-level": ["loud"],
    "log-format": ["xml"],
    "loopback-ipv4": ["::1", "300.1.1.1"],
    "loopback-ipv6": ["169.254.42.1", "fe80::1", "ff02::1"],
    "enable-ipv4-masquerade": ["maybe"],
}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    """No option of the machine the test runs on."""
    import os

    for name in [name for name in os.environ if name.startswith("CILIUMD_")]:
        monkeypatch.delenv(name)


def value(settings, option):
    """The value of an option."""
    return getattr(settings, option.replace("-", "_"))


def test_every_option_is_tested_here():
    """Nobody adds one without saying what it takes."""
    tested = {*OPTIONS, *SWITCHES, "devices", "config-dir"}
    assert {name.replace("_", "-") for name in Settings.model_fields} == tested


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_comes_from_the_command_line(option):
    """As ``--option value`` and as ``--option=value``."""
    text, expected = OPTIONS[option]
    others = [] if option == "manifests" else REQUIRED
    assert value(read_settings([*others, f"--{option}", text]), option) == expected
    assert value(read_settings([*others, f"--{option}={text}"]), option) == expected


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_comes_from_the_environment(monkeypatch, option):
    """The command line wins over it."""
    text, expected = OPTIONS[option]
    monkeypatch.setenv(f"CILIUMD_{option.replace('-', '_').upper()}", text)
    others = [] if option == "manifests" else REQUIRED
    assert value(read_settings(others), option) == expected
    if option == "mtu":
        assert read_settings([*REQUIRED, "--mtu", "9000"]).mtu == 9000


def test_devices_are_a_list(monkeypatch):
    """Given several times, or with commas, on the command line; with commas in the environment."""
    assert read_settings(REQUIRED).devices == ()
    assert read_settings([*REQUIRED, "--devices", "eth0", "--devices", "eth1"]).devices == ("eth0", "eth1")
    assert read_settings([*REQUIRED, "--devices", "eth0,eth1"]).devices == ("eth0", "eth1")
    monkeypatch.setenv("CILIUMD_DEVICES", "eth0,eth1")
    assert read_settings(REQUIRED).devices == ("eth0", "eth1")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], True),
        (["--enable-ipv4-masquerade"], True),
        (["--no-enable-ipv4-masquerade"], False),
        (["--enable-ipv4-masquerade=true"], True),
        (["--enable-ipv4-masquerade=false"], False),
    ],
)
def test_a_switch_is_a_flag_or_has_a_value(arguments, expected):
    """As in Cilium's Helm values, and as people type it."""
    assert read_settings([*REQUIRED, *arguments]).enable_ipv4_masquerade is expected


@pytest.mark.parametrize(("option", "text"), [(o, t) for o, texts in INVALID.items() for t in texts])
def test_a_wrong_value_is_told_by_its_option(option, text):
    """On the command line and in the environment alike."""
    with pytest.raises(SettingsInvalid, match=option):
        read_settings([*REQUIRED, f"--{option}={text}"])


@pytest.mark.parametrize(("option", "text"), [(option, texts[0]) for option, texts in INVALID.items()])
def test_a_wrong_value_in_the_environment_is_told_by_its_option(monkeypatch, option, text):
    """Whoever reads the message finds the variable too."""
    monkeypatch.setenv(f"CILIUMD_{option.replace('-', '_').upper()}", text)
    with pytest.raises(SettingsInvalid, match=option):
        read_settings(REQUIRED)


@pytest.mark.parametrize("option", SWITCHES)
def test_switches_have_defaults(option):
    """What a plain `ciliumd agent` does."""
    assert value(read_settings([]), option) is SWITCHES[option]


def test_without_manifests_the_agent_follows_kubernetes():
    """No option is required."""
    assert read_settings([]).manifests is None


@pytest.mark.parametrize(("text", "expected"), [("auto", "auto"), ("/sys/fs/cgroup", Path("/sys/fs/cgroup"))])
def test_the_cgroup_root_is_a_path_or_found(text, expected):
    """``auto`` is a word, not a directory."""
    assert read_settings([f"--cgroup-root={text}"]).cgroup_root == expected


@pytest.mark.parametrize("text", ["strict", "probe", "partial", "disabled"])
def test_old_words_for_replacing_kube_proxy(monkeypatch, text):
    """As the first articles on Cilium write it."""
    assert read_settings([f"--kube-proxy-replacement={text}"]).kube_proxy_replacement == text
    monkeypatch.setenv("CILIUMD_KUBE_PROXY_REPLACEMENT", text)
    assert read_settings([]).kube_proxy_replacement == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30.0), ("0.5", 0.5), ("45s", 45.0), ("1m30s", 90.0), ("2h", 7200.0), ("250ms", 0.25)],
)
def test_a_duration_is_seconds_or_as_go_writes_it(text, seconds):
    """ConfigMaps of Cilium have the latter."""
    assert read_settings([f"--drift-interval={text}"]).drift_interval == seconds


def test_debug_is_a_log_level_unless_one_is_given():
    """``debug: "true"`` is how Cilium's ConfigMap says it."""
    assert read_settings(["--debug"]).log_level == "debug"
    assert read_settings(["--debug", "--log-level=error"]).log_level == "error"
    assert read_settings([]).log_level == "info"


def test_metrics_on_every_address_as_cilium_writes_it():
    """A port alone."""
    assert read_settings(["--prometheus-serve-addr=:9962"]).metrics_address == ":9962"


def test_several_wrong_values_are_told_together():
    """One start, one list."""
    with pytest.raises(SettingsInvalid, match=r"--mtu.*--log-level"):
        read_settings([*REQUIRED, "--mtu=-1", "--log-level=loud"])


@pytest.mark.parametrize("arguments", [["--nonsense", "1"], ["--mtu"], ["stray"], ["--manifest-dir=/m"]])
def test_what_is_no_option_is_refused(arguments):
    """With its name, and not by ending the process."""
    with pytest.raises(SettingsInvalid, match=r"nonsense|mtu|stray|manifest-dir"):
        read_settings([*REQUIRED, *arguments])


def test_help_lists_every_option_and_ends_well(capsys):
    """Exit code 0, the text on stdout."""
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "ciliumd agent" in text
    for option in (*OPTIONS, *SWITCHES, "devices", "config-dir"):
        assert f"--{option}" in text


def test_wrong_options_end_the_agent_with_2_and_a_message(capsys):
    """The message is on stderr, names the option, and says where to look."""
    assert main([*REQUIRED, "--mtu=-1"]) == EXIT_USAGE == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("ciliumd agent: --mtu: ")
    assert "ciliumd agent --help" in printed.err


def test_the_agent_may_open_as_many_files_as_the_machine_allows(monkeypatch, tmp_path, capsys):
    """Two per policy version are more than a login shell grants."""
    limits = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 524288))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits.append((kind, pair)))
    main(["--manifests", str(tmp_path / "missing")])
    assert limits == [(resource.RLIMIT_NOFILE, (524288, 524288))]


def test_a_start_that_fails_ends_the_agent_with_1(capsys, tmp_path):
    """The log says what to do."""
    assert main(["--manifests", str(tmp_path / "missing")]) == EXIT_FAILED == 1
    printed = capsys.readouterr().err
    assert "is no directory; create it or name another" in printed
    assert "level=error" in printed


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], False),
        (["--enable-host-legacy-routing"], True),
        (["--no-kube-proxy-replacement"], True),
    ],
)
def test_beside_kube_proxy_packets_go_through_the_stack(words, expected):
    """Or netfilter could not undo what it did."""
    assert read_settings(words).host_legacy_routing is expected


def test_pods_have_a_family():
    """At least one; the tunnel follows, or is told."""
    with pytest.raises(SettingsInvalid, match="both false"):
        read_settings([*REQUIRED, "--no-enable-ipv4"])
    assert read_settings(REQUIRED).underlay == 4
    both = [*REQUIRED, "--enable-ipv6"]
    assert read_settings(both).underlay == 4
    assert read_settings([*both, "--underlay-protocol=ipv6"]).underlay == 6
    alone = [*both, "--enable-ipv4=false", "--routing-mode=tunnel"]
    assert read_settings(alone).underlay == 6
    assert read_settings([*alone, "--underlay-protocol=ipv4"]).underlay == 4
