# SPDX-License-Identifier: Apache-2.0
"""Options out of a mounted ConfigMap: Cilium's keys, who wins, and what is said about the others."""

import os
from ipaddress import IPv4Address

import pytest

from ciliumd.daemon.config_directory import ConfigDirectory, Note, interpret
from ciliumd.daemon.config_keys import FIXED, FOREIGN, RENAMED
from ciliumd.daemon.settings import Settings, SettingsInvalid, config_directory, read_settings


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    """No option of the machine the test runs on."""
    for name in [name for name in os.environ if name.startswith("CILIUMD_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def mounted(tmp_path):
    """Write keys as kubelet mounts them; returns the directory."""

    def write(**keys):
        data = tmp_path / "..2026_01_01"
        data.mkdir(exist_ok=True)
        (tmp_path / "..data").symlink_to(data.name)
        for name, text in keys.items():
            key = name.replace("_", "-")
            (data / key).write_text(text)
            (tmp_path / key).symlink_to(f"..data/{key}")
        return tmp_path

    return write


def read(directory, *words):
    """Settings with *directory*."""
    return read_settings([f"--config-dir={directory}", *words])


def test_each_key_is_a_file(mounted):
    """Booleans, numbers, lists and durations are text; a trailing newline is none of theirs."""
    found = read(
        mounted(
            routing_mode="tunnel\n",
            tunnel_port="8473",
            enable_ipv4_masquerade="false",
            devices="eth0 eth1",
            node_port_range="30000,32000",
            health_check_interval="10s",
            mtu="",
        )
    )
    assert (found.routing_mode, found.tunnel_port, found.enable_ipv4_masquerade) == ("tunnel", 8473, False)
    assert (found.devices, found.node_port_range) == (("eth0", "eth1"), (30000, 32000))
    assert (found.health_check_interval, found.mtu) == (10.0, 0)


def test_environment_and_command_line_win(mounted, monkeypatch):
    """The nearer to the process, the stronger."""
    directory = mounted(tunnel_port="1", mtu="1400", cluster_name="east")
    monkeypatch.setenv("CILIUMD_MTU", "1450")
    monkeypatch.setenv("CILIUMD_CLUSTER_NAME", "west")
    found = read(directory, "--cluster-name=north")
    assert (found.tunnel_port, found.mtu, found.cluster_name) == (1, 1450, "north")


def test_the_directory_may_be_named_by_the_environment(mounted, monkeypatch):
    """Like every option."""
    monkeypatch.setenv("CILIUMD_CONFIG_DIR", str(mounted(mtu="1400")))
    assert read_settings([]).mtu == 1400


def test_names_of_cilium_for_our_options(mounted):
    """Every renamed key reaches its field."""
    values = {
        "bpf_nat_global_max": "4096",
        "ipv4_service_loopback_address": "169.254.1.1",
        "ipv6_service_loopback_address": "100::7",
        "k8s_kubeconfig_path": "/kubeconfig",
        "native_routing_cidr": "10.0.0.0/8",
        "prometheus_serve_addr": ":9962",
        "socket_path": "/run/x.sock",
    }
    assert {name.replace("_", "-") for name in values} == set(RENAMED)
    found = read(mounted(**values))
    assert found.bpf_nat_max == 4096
    assert found.loopback_ipv4 == IPv4Address("169.254.1.1")
    assert str(found.loopback_ipv6) == "100::7"
    assert str(found.kubeconfig) == "/kubeconfig"
    assert str(found.ipv4_native_routing_cidr) == "10.0.0.0/8"
    assert found.metrics_address == ":9962"
    assert str(found.api_socket) == "/run/x.sock"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"tunnel": "vxlan"}, {"routing_mode": "tunnel", "tunnel_protocol": "vxlan"}),
        ({"tunnel": "disabled"}, {"routing_mode": "native"}),
        ({"tunnel": "vxlan", "routing_mode": "tunnel"}, {"routing_mode": "tunnel"}),
        ({"enable_tcx": "false"}, {"attach_mode": "tc"}),
        ({"enable_tcx": "true"}, {"attach_mode": "auto"}),
        ({"enable_tcx": "false", "attach_mode": "tcx"}, {"attach_mode": "tcx"}),
        ({"bpf_ct_global_tcp_max": "2000"}, {"bpf_ct_max": 2000}),
        ({"bpf_ct_global_tcp_max": "2000", "bpf_ct_global_any_max": "1000"}, {"bpf_ct_max": 3000}),
    ],
)
def test_keys_that_say_it_otherwise(mounted, keys, expected):
    """Old names, and tables that are one here."""
    found = read(mounted(**keys))
    assert {name: getattr(found, name) for name in expected} == expected


def test_an_old_key_gets_one_line(mounted):
    """It works, and says what to write."""
    directory = mounted(tunnel="vxlan")
    assert config_directory(directory).deprecated == (
        Note("tunnel", "write routing-mode=tunnel instead", "routing-mode"),
    )


def test_old_and_new_key_that_contradict_each_other_are_refused(mounted):
    """Nobody knows which was meant."""
    with pytest.raises(SettingsInvalid, match="tunnel=disabled contradicts routing-mode=tunnel"):
        read(mounted(tunnel="disabled", routing_mode="tunnel"))


def test_a_key_that_is_none_is_told_with_the_nearest(mounted):
    """The agent starts all the same."""
    directory = mounted(tunel_port="8473", completely_different="1")
    assert read(directory).tunnel_port == 8472
    assert config_directory(directory).unknown == (
        Note("completely-different", "no option of this name"),
        Note("tunel-port", "no option of this name", "tunnel-port"),
    )


def test_keys_of_others_are_silent(mounted):
    """The operator and the clients read the same ConfigMap."""
    directory = mounted(**{key.replace("-", "_"): "anything" for key in FOREIGN})
    found = config_directory(directory)
    assert (found.values, found.unknown, found.deprecated) == ({}, (), ())
    assert read(directory) == read_settings([f"--config-dir={directory}"])


@pytest.mark.parametrize("key", sorted(FIXED))
def test_what_this_version_cannot_do_is_refused(mounted, key):
    """A user who sets it believes that it is done."""
    with pytest.raises(SettingsInvalid, match=f"{key}=surely is not supported"):
        read(mounted(**{key.replace("-", "_"): "surely"}))


@pytest.mark.parametrize("text", ["", *sorted(set().union(*(accepted for accepted, _ in FIXED.values())))])
def test_what_this_version_does_anyway_is_silent(text):
    """Including the empty value, which says nothing."""
    keys = {key: text for key, (accepted, _) in FIXED.items() if not text or text in accepted}
    assert interpret(keys, ()) == ConfigDirectory()


def test_no_key_has_two_owners():
    """Each key is known for one reason."""
    own = {name.replace("_", "-") for name in Settings.model_fields}
    tables = [own, set(RENAMED), set(FIXED), set(FOREIGN)]
    assert sum(map(len, tables)) == len(set().union(*tables))


def test_a_wrong_value_is_told_by_its_option(mounted):
    """The same words as for the command line."""
    with pytest.raises(SettingsInvalid, match="--tunnel-port: "):
        read(mounted(tunnel_port="many"))


def test_a_size_that_is_no_number_is_told_by_its_key(mounted):
    """It would have to be added."""
    with pytest.raises(SettingsInvalid, match="bpf-ct-global-tcp-max: lots is not a number"):
        read(mounted(bpf_ct_global_tcp_max="lots"))


def test_a_directory_that_is_not_there_is_told(tmp_path):
    """By the option that names it."""
    with pytest.raises(SettingsInvalid, match=r"--config-dir .*missing"):
        read(tmp_path / "missing")


def test_a_file_that_is_no_text_is_told(tmp_path):
    """Bytes that are not UTF-8."""
    (tmp_path / "mtu").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsInvalid, match="--config-dir"):
        read(tmp_path)
