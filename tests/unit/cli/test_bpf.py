# SPDX-License-Identifier: Apache-2.0
"""``cilium bpf`` shows maps as Cilium shows its own, joined where ours are split."""

import json

import pytest

from ciliumd.cli import bpf_rows

ENDPOINT = {
    "id": 12,
    "identity": 257,
    "flags": [],
    "ifindex": 7,
    "slot_gen": 5,
    "ipv4": "10.0.0.2",
    "ipv6": "",
    "mac": "02:00:00:00:00:0a",
    "node_mac": "02:00:00:00:00:0b",
}
LOCAL = {"identity": 257, "tunnel_endpoint": "", "encrypt_key": 0, "flags": 0}
REMOTE = {"identity": 2, "tunnel_endpoint": "172.18.0.3", "encrypt_key": 3, "flags": 0}


@pytest.fixture
def ipcache(agent):
    """Two addresses and two prefixes."""
    agent.maps(
        cilium_ipcache_v1=[
            ({"addr": "10.0.0.10", "cluster_id": 0}, LOCAL),
            ({"addr": "10.0.0.2", "cluster_id": 0}, LOCAL),
        ],
        cilium_ipcache_lpm_v1=[
            ({"prefix": "10.1.0.0/24", "cluster_id": 0}, REMOTE),
            ({"prefix": "0.0.0.0/0", "cluster_id": 0}, {**LOCAL, "identity": 2}),
        ],
    )


def test_endpoint_list_joins_addresses_and_facts(agent, run):
    """The node's own addresses are localhost; a slot without endpoint is said to be empty."""
    agent.maps(
        cilium_lxc_v1=[
            ({"addr": "10.0.0.2"}, {"slot": 3}),
            ({"addr": "10.0.0.1"}, {"slot": "host"}),
            ({"addr": "fd00::2"}, {"slot": 9}),
        ],
        cilium_endpoints_v1=[({"slot": 3}, ENDPOINT)],
    )

    assert run.cilium("bpf", "endpoint", "list") == 0
    assert run.out == (
        "IP ADDRESS   LOCAL ENDPOINT INFO\n"
        "10.0.0.1:0   (localhost)\n"
        "10.0.0.2:0   id=12    sec_id=257   flags=0x0000 ifindex=7   mac=02:00:00:00:00:0A "
        "nodemac=02:00:00:00:00:0B\n"
        "fd00::2:0    slot 9 is empty\n"
    )


@pytest.mark.usefixtures("ipcache")
def test_ipcache_list_is_sorted_by_address(run):
    """Hosts and prefixes in one list, in Cilium's JSON form too."""
    assert run.cilium("bpf", "ipcache", "list") == 0
    assert run.out.splitlines()[0] == "IP PREFIX/ADDRESS   IDENTITY"
    assert [line.split()[0] for line in run.out.splitlines()[1:]] == [
        "0.0.0.0/0",
        "10.0.0.2/32",
        "10.0.0.10/32",
        "10.1.0.0/24",
    ]
    assert run.cilium("bpf", "ipcache", "list", "-o", "json") == 0
    assert json.loads(run.out)["10.1.0.0/24"] == [
        "identity=2 encryptkey=3 tunnelendpoint=172.18.0.3 flags=<none>"
    ]


@pytest.mark.usefixtures("ipcache")
@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("10.0.0.2", "10.0.0.2 maps to identity 257 0 0.0.0.0\n"),
        ("10.1.0.77", "10.1.0.77 maps to identity 2 3 172.18.0.3\n"),
        ("192.0.2.1", "192.0.2.1 maps to identity 2 0 0.0.0.0\n"),
    ],
)
def test_ipcache_get_takes_the_longest_prefix(run, address, text):
    """As the datapath looks it up."""
    assert run.cilium("bpf", "ipcache", "get", address) == 0
    assert run.out == text


@pytest.mark.usefixtures("ipcache")
@pytest.mark.parametrize(("address", "code"), [("fd00::1", 1), ("nonsense", 2)])
def test_ipcache_get_of_what_is_not_there(run, address, code):
    """Absent is 1, no address is 2."""
    assert run.cilium("bpf", "ipcache", "get", address) == code


@pytest.mark.usefixtures("ipcache")
def test_tunnel_list_shows_remote_prefixes(run):
    """Only rows that are reached through a tunnel."""
    assert run.cilium("bpf", "tunnel", "list") == 0
    assert run.out == "TUNNEL        VALUE\n10.1.0.0/24   172.18.0.3\n"


@pytest.fixture
def services(agent):
    """A service with one backend that exists and one that does not."""
    key = {"addr": "10.96.0.10", "port": 80, "protocol": "TCP", "scope": "external"}
    value = {"rev_nat": 3, "flags": ["cluster-ip", "affinity"], "affinity_timeout": 0}
    agent.maps(
        cilium_lb_services_v1=[
            ({**key, "slot": 2}, {**value, "target": 6}),
            ({**key, "slot": 0}, {**value, "target": 2}),
            ({**key, "slot": 1}, {**value, "target": 5}),
        ],
        cilium_lb_backends_v1=[
            ({"id": 5}, {"id": 5, "port": 8080, "protocol": "TCP", "state": "active", "addr": "10.0.0.2"})
        ],
        cilium_lb_revnat_v1=[({"id": 3}, {"id": 3, "port": 80, "addr": "10.96.0.10"})],
    )


LB_SERVICES = """\
SERVICE ADDRESS     BACKEND ADDRESS (REVNAT_ID) (SLOT)
10.96.0.10:80/TCP   0.0.0.0:0 (3) (0) [ClusterIP, sessionAffinity]
                    10.0.0.2:8080/TCP (3) (1)
                    backend 6 not found
"""
LB_FRONTENDS = """\
SERVICE ADDRESS     BACKEND ID
10.96.0.10:80/TCP   0 2 (3) (0)
                    5 0 (3) (1)
                    6 0 (3) (2)
"""
LB_BACKENDS = "ID   BACKEND ADDRESS (REVNAT_ID) (SLOT)\n5    10.0.0.2:8080/TCP (active)\n"
LB_REVNAT = "ID   BACKEND ADDRESS (REVNAT_ID) (SLOT)\n3    10.96.0.10:80\n"


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize(
    ("option", "text"),
    [
        ((), LB_SERVICES),
        (("--frontends",), LB_FRONTENDS),
        (("--backends",), LB_BACKENDS),
        (("--revnat",), LB_REVNAT),
    ],
)
def test_lb_list(run, option, text):
    """Slots in order, with the address behind each backend id."""
    assert run.cilium("bpf", "lb", "list", *option) == 0
    assert run.out == text


def test_lb_list_of_ipv6(run, agent):
    """Addresses in brackets; a frontend behind which nobody is, too."""
    key = {"addr": "fd00:96::10", "port": 80, "protocol": "TCP", "scope": "external"}
    value = {"rev_nat": 3, "flags": ["cluster-ip"], "affinity_timeout": 0}
    backend = {"id": 5, "port": 8080, "protocol": "TCP", "state": "active", "addr": "fd00:1::2"}
    agent.maps(
        cilium_lb_services_v1=[
            ({**key, "slot": 0}, {**value, "target": 1}),
            ({**key, "slot": 1}, {**value, "target": 5}),
        ],
        cilium_lb_backends_v1=[({"id": 5}, backend)],
        cilium_lb_revnat_v1=[({"id": 3}, {"id": 3, "port": 80, "addr": "fd00:96::10"})],
    )
    assert run.cilium("bpf", "lb", "list") == 0
    assert run.out == (
        "SERVICE ADDRESS        BACKEND ADDRESS (REVNAT_ID) (SLOT)\n"
        "[fd00:96::10]:80/TCP   [::]:0 (3) (0) [ClusterIP]\n"
        "                       [fd00:1::2]:8080/TCP (3) (1)\n"
    )
    assert run.cilium("bpf", "lb", "list", "--backends") == 0
    assert run.out.splitlines()[1:] == ["5    [fd00:1::2]:8080/TCP (active)"]
    assert run.cilium("bpf", "lb", "list", "--revnat") == 0
    assert run.out.splitlines()[1:] == ["3    [fd00:96::10]:80"]


CT_KEY = {
    "local": "10.0.0.2",
    "remote": "10.0.0.1",
    "local_port": 80,
    "remote_port": 1234,
    "protocol": "TCP",
    "kind": "flow",
    "zone": 0,
}
CT_VALUE = {
    "policy_version": 9,
    "peer_identity": 256,
    "rule_cookie": 1,
    "expires": 100,
    "last_report": 90,
    "rev_nat": 0,
    "flags": ["origin-remote", "seen-non-syn"],
    "backend_id": 0,
    "tcp_flags_local": 18,
    "tcp_flags_remote": 2,
    "proxy_slot": 0,
}


def test_ct_list_shows_who_opened_the_connection(agent, run):
    """IN is from the remote side; a service row says so."""
    service = {**CT_KEY, "kind": "service", "protocol": "UDP", "remote": "fd00::1"}
    agent.maps(cilium_ct_v1=[(CT_KEY, CT_VALUE), (service, {**CT_VALUE, "flags": [], "backend_id": 5})])

    assert run.cilium("bpf", "ct", "list", "global") == 0
    assert run.out == (
        "TCP IN 10.0.0.1:1234 -> 10.0.0.2:80 expires=100 RxFlagsSeen=0x02 LastRxReport=90 TxFlagsSeen=0x12 "
        "LastTxReport=90 Flags=0x10010 [ SeenNonSyn OriginRemote ] RevNAT=0 SourceSecurityID=256 BackendID=0 "
        "PolicyVersion=9\n"
        "UDP OUT 10.0.0.2:80 -> [fd00::1]:1234 service expires=100 RxFlagsSeen=0x02 LastRxReport=90 "
        "TxFlagsSeen=0x12 LastTxReport=90 Flags=0x0000 [ ] RevNAT=0 SourceSecurityID=256 BackendID=5 "
        "PolicyVersion=9\n"
    )


def test_every_flag_of_the_datapath_has_a_word_and_a_bit():
    """Those that Cilium has are where it has them, 0x0010 for SeenNonSyn."""
    from ciliumd.abi import CtFlags

    names = {flag.name.removeprefix("CT_F_").lower().replace("_", "-") for flag in CtFlags}
    bits = [bit for _, bit in bpf_rows._CT_FLAGS.values()]
    assert set(bpf_rows._CT_FLAGS) == names | {"audited"}, "which the row says by its policy version"
    assert len(set(bits)) == len(bits)
    assert bpf_rows._CT_FLAGS["seen-non-syn"] == ("SeenNonSyn", 0x0010)


def test_flushing_nat_says_how_much(agent, run):
    """One by one map."""
    agent.answers["DELETE /v1/map/cilium_snat_v1"] = {"deleted": 3}

    assert run.cilium("bpf", "nat", "flush") == 0
    assert run.out == "Flushed 3 entries from cilium_snat_v1\n"


@pytest.mark.parametrize("option", [(), ("--frontends",), ("--backends",), ("--revnat",)])
@pytest.mark.usefixtures("services")
def test_lb_list_as_json_has_what_the_table_has(run, option):
    """Keys of the first column, lists of the second."""
    assert run.cilium("bpf", "lb", "list", *option, "-o", "json") == 0
    rows = json.loads(run.out)
    assert run.cilium("bpf", "lb", "list", *option) == 0
    for key, lines in rows.items():
        assert key in run.out
        assert all(line in run.out for line in lines)


def test_nat_lines_show_both_directions():
    """What is rewritten to what, and for how long."""
    key = {"src": "10.0.0.2", "dst": "192.0.2.1", "sport": 1234, "dport": 80, "protocol": "TCP", "zone": 0}
    value = {"port": 40000, "flags": 0, "addr": "172.18.0.2", "created": 95}

    assert bpf_rows.nat_line({"key": {**key, "dir": "out"}, "value": value}, 100) == (
        "TCP OUT 10.0.0.2:1234 -> 192.0.2.1:80 XLATE_SRC 172.18.0.2:40000 Created=5sec ago"
    )
    assert " IN 10.0.0.2:1234 -> 192.0.2.1:80 XLATE_DST " in bpf_rows.nat_line(
        {"key": {**key, "dir": "in"}, "value": value}, 100
    )


def test_nat_lines_show_where_no_port_is_left():
    """Nothing is translated by such a row."""
    key = {"src": "192.0.2.1", "sport": 80, "dst": "172.18.0.2", "dport": 0, "protocol": "TCP", "dir": "full"}
    value = {"addr": "", "port": 0, "created": 95}

    assert bpf_rows.nat_line({"key": key, "value": value}, 100) == (
        "TCP FULL 192.0.2.1:80 -> 172.18.0.2:0 Created=5sec ago"
    )


def test_nat_lines_of_ipv6_have_brackets():
    """Or nobody could tell the port."""
    key = {"src": "fd00:1::b", "dst": "2001:db8::7", "sport": 7, "dport": 53, "protocol": "UDP", "zone": 0}
    value = {"port": 40000, "flags": 0, "addr": "2001:db8:9::1", "created": 95}

    assert bpf_rows.nat_line({"key": {**key, "dir": "out"}, "value": value}, 100) == (
        "UDP OUT [fd00:1::b]:7 -> [2001:db8::7]:53 XLATE_SRC [2001:db8:9::1]:40000 Created=5sec ago"
    )


def test_empty_map_says_so_on_stderr(agent, run):
    """No table, no data on stdout, not an error."""
    agent.maps(cilium_snat_v1=[])

    assert run.cilium("bpf", "nat", "list") == 0
    assert (run.out, run.err) == ("", "No entries found.\n")


def test_metrics_list(agent, run):
    """Reasons with upper-case directions in text, lower-case in JSON, as Cilium."""
    row = {"reason": 133, "reason_text": "Policy denied", "direction": "ingress"}
    agent.maps(cilium_metrics_v1=[(row, {"packets": 3, "bytes": 222})])

    assert run.cilium("bpf", "metrics", "list") == 0
    assert (
        run.out == "REASON          DIRECTION   PACKETS   BYTES\nPolicy denied   INGRESS     3         222\n"
    )
    assert run.cilium("bpf", "metrics", "list", "-o", "json") == 0
    assert json.loads(run.out) == [
        {"reason": "Policy denied", "direction": "ingress", "packets": 3, "bytes": 222}
    ]


@pytest.fixture
def policy(agent):
    """Endpoint 12 under version 9, which allows identity 256 on 80/TCP and denies the rest."""

    def key(version, class_id, prefixlen, dport=0):
        return {
            "version": version,
            "prefixlen": prefixlen,
            "class_id": class_id,
            "direction": "ingress",
            "protocol": "TCP" if prefixlen > 24 else "ANY",
            "dport": dport,
        }

    def value(verdict, cookie):
        return {"verdict": verdict, "flags": 0, "proxy_slot": 0, "rule_cookie": cookie}

    agent.maps(
        cilium_endpoint_state_v1=[({"slot": 3}, {"slot_gen": 5, "policy_version": 9})],
        cilium_endpoints_v1=[({"slot": 3}, ENDPOINT)],
        cilium_policy_rules_v1=[
            (key(9, 0, 24), value("default-deny", 77)),
            (key(9, 1, 48, 80), value("allow", 78)),
            (key(9, 1, 24), value("default-deny", 77)),
            (key(8, 0, 24), value("allow", 0)),
        ],
        cilium_policy_classes_v1=[
            ({"version": 9, "identity": 256, "direction": "ingress"}, {"class_id": 1}),
            ({"version": 8, "identity": 999, "direction": "ingress"}, {"class_id": 1}),
        ],
    )
    agent.get("identity", [{"id": 256, "labels": ["k8s:org=alliance", "k8s:class=xwing"]}])
    agent.get(
        "policy",
        {"revision": 1, "rule-cookies": {"77": ["cnp:default/r"], "78": ["cnp:default/r/ingress/0"]}},
    )
    agent.get("endpoint", [{"id": 12}])


@pytest.mark.usefixtures("policy")
def test_policy_get_joins_version_classes_identities_and_rules(run):
    """The rows the datapath judges this endpoint by, and no other version's."""
    assert run.cilium("bpf", "policy", "get", "12") == 0
    assert run.out == (
        "POLICY   DIRECTION   LABELS (source:key[=value])   PORT/PROTO   PROXY PORT   AUTH TYPE   BYTES   "
        "PACKETS   PREFIX   COOKIE   RULE\n"
        "Deny     Ingress     ANY                           ANY          NONE         disabled    -       "
        "-         24       77       cnp:default/r (default deny)\n"
        "Deny     Ingress     k8s:class=xwing               ANY          NONE         disabled    -       "
        "-         24       77       cnp:default/r (default deny)\n"
        "                     k8s:org=alliance\n"
        "Allow    Ingress     k8s:class=xwing               80/TCP       NONE         disabled    -       "
        "-         48       78       cnp:default/r/ingress/0\n"
        "                     k8s:org=alliance\n"
    )


@pytest.mark.usefixtures("policy")
def test_policy_get_numeric_and_all(run):
    """Identities as numbers; in JSON every endpoint under its own number."""
    assert run.cilium("bpf", "policy", "get", "12", "-n") == 0
    assert [line.split()[2] for line in run.out.splitlines()] == ["IDENTITY", "0", "256", "256"]
    assert run.cilium("bpf", "policy", "list", "--all", "-o", "json") == 0
    assert [entry["port"] for entry in json.loads(run.out)["12"]] == ["ANY", "ANY", "80/TCP"]


@pytest.mark.usefixtures("policy")
@pytest.mark.parametrize("verb", ["get", "list"])
def test_policy_without_an_endpoint_is_of_all(run, verb):
    """Nobody named is everybody, as with --all."""
    assert run.cilium("bpf", "policy", verb, "--all") == 0
    everybody = run.out
    assert run.cilium("bpf", "policy", verb) == 0
    assert run.out == everybody
    assert run.out.startswith("Endpoint ID: 12\n\nPOLICY")


@pytest.mark.usefixtures("policy")
def test_policy_of_one_endpoint_and_of_all_is_misuse(run):
    """It is one or the other."""
    assert run.cilium("bpf", "policy", "get", "12", "--all") == 2
    assert "name one endpoint, or use --all" in run.err


@pytest.mark.parametrize(
    ("prefixlen", "port"),
    [(24, "ANY"), (32, "ANY/TCP"), (48, "8080/TCP"), (47, "8080-8081/TCP"), (43, "8080-8111/TCP")],
)
def test_policy_port_of_a_prefix(prefixlen, port):
    """A block of ports is shown as a range."""
    assert bpf_rows.policy_port({"prefixlen": prefixlen, "dport": 8080, "protocol": "TCP"}) == port
