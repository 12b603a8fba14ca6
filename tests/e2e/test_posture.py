# SPDX-License-Identifier: Apache-2.0
"""What the agents hold in their hands on a real cluster: rights, files, sockets, system calls, objects."""

import json
import re
import stat
from collections.abc import Callable

import pytest

from lab.confined import FORBIDDEN, MISSING, mask
from lab.k8s.ciliumd import AGENT, NAMESPACE, Ciliumd
from lab.k8s.cluster import Cluster
from lab.k8s.kubectl import Kubectl

NODES = ["node1", "node2"]
CAPABILITIES = ("NET_ADMIN", "NET_RAW", "PERFMON", "BPF")
SECCOMP_FILTER = "2"
HEALTH_PORT = 4240
# Directories of the host that everybody may look into; what is in them is judged by itself.
OPEN_DIRECTORIES = {"/var/run/cilium", "/host/etc/cni/net.d", "/sys/fs/bpf"}
SOCKETS = ["cilium.sock", "cni.sock"]
OURS = "/var/run/cilium /sys/fs/bpf/ciliumd /host/etc/cni/net.d/05-cilium.conflist"
# What anybody in the container may write: scratch space, and what the runtime mounts for it.
SCRATCH = {"/tmp", "/dev/shm", "/dev/mqueue", "/dev/termination-log"}  # noqa: S108  # of the container
READ_ONLY = ("/", "/opt/ciliumd", "/usr/bin", "/etc", "/var/lib")
ANYBODYS = """
import json, os, stat
found, seen, virtual = [], 0, ("/proc", "/sys", "/host/proc")
for place, directories, files in os.walk("/"):
    directories[:] = [one for one in directories if os.path.join(place, one) not in virtual]
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        continue
    for path in (place, *(os.path.join(place, one) for one in files)):
        mode, seen = os.lstat(path).st_mode, seen + 1
        if mode & stat.S_IWOTH and not (stat.S_ISLNK(mode) or stat.S_ISCHR(mode)):
            found.append(path)
print(json.dumps({"open": found, "seen": seen}))
"""
USER_NAMESPACES = """
import os
for number in filter(str.isdigit, os.listdir("/proc")):
    print(number, os.readlink(f"/proc/{number}/ns/user"))
"""
# What people, `cilium sysdump` and `cilium connectivity test` run in the agent's container.
TOOLS = (
    "ls -la /var/run/cilium",
    "find /sys/fs/bpf/ciliumd -name maps",
    "ip -s address",
    "ip route show table all",
    "ip neighbor",
    "tc -s qdisc show",
    "ss -s",
    "bpftool version",
    "jq -n 1",
    "tcpdump --version",
    "tar -cf - /etc/hosts",
    "cat /proc/net/dev | head -n 2 | sort",
    "cilium status --verbose",
    "cilium bpf ct list global",
    "cilium-health status",
    "cilium version",
)
OUTSIDER = """
import errno, os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
one = socket.socket(socket.AF_UNIX)
try:
    one.connect(sys.argv[1])
except OSError as error:
    print(errno.errorcode[error.errno])
else:
    print("connected")
"""
OTHER_NODE = """
import json, os, ssl, sys, urllib.error, urllib.request
account = "/var/run/secrets/kubernetes.io/serviceaccount"
token = open(f"{account}/token").read()
context = ssl.create_default_context(cafile=f"{account}/ca.crt")
server = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
url = f"{server}/apis/cilium.io/v2/ciliumnodes/{sys.argv[1]}"
headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
def ask(method, data=None):
    request = urllib.request.Request(url, data, headers, method=method)
    return json.load(urllib.request.urlopen(request, context=context))
document = ask("GET")
document["metadata"].setdefault("labels", {})["taken"] = "over"
try:
    ask("PUT", json.dumps(document).encode())
except urllib.error.HTTPError as error:
    print(error.code, json.load(error)["message"])
else:
    print("written")
"""


Record = Callable[[str, object], None]


def record(record_property: Record, case: str, **figures: int) -> None:
    """A row for evidence."""
    named = {name.replace("_", " "): int(value) for name, value in figures.items()}
    record_property("data", json.dumps({"case": case, **named}))


def python(ciliumd: Ciliumd, node: str, source: str, *words: str) -> str:
    """What a script says in the agent's container."""
    found = ciliumd.exec(ciliumd.cluster.node(node), "python3", "-c", source, *words)
    return found.stdout.strip()


def statuses(ciliumd: Ciliumd, node: str) -> dict[int, dict[str, str]]:
    """/proc/*/status of the processes of the agent's container, by their number there."""
    script = "import glob\nfor p in glob.glob('/proc/[0-9]*/status'):\n  print(open(p).read())"
    found = {}
    for text in python(ciliumd, node, script).split("\n\n"):
        fields = dict(re.findall(r"^(\w+):\s*(.*)$", text, re.MULTILINE))
        found[int(fields["Pid"])] = fields
    return found


@pytest.mark.parametrize("node", NODES)
def test_the_agent_has_four_capabilities_and_can_get_no_more(
    ciliumd: Ciliumd, node: str, record_property: Record
) -> None:
    """Effective, permitted and bounding set; no-new-privileges; a filter of system calls."""
    processes = statuses(ciliumd, node)
    agent = processes[1]
    wanted = mask(CAPABILITIES)
    more = (int(agent["CapEff"], 16) & ~wanted).bit_count()
    record(record_property, "S2", agents=1, capabilities=len(CAPABILITIES), more_than_listed=more)

    assert agent["Name"] == "ciliumd"
    assert {int(agent[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {wanted}
    assert {int(agent[name], 16) for name in ("CapInh", "CapAmb")} == {0}
    assert {one["NoNewPrivs"] for one in processes.values()} == {"1"}
    assert {one["Seccomp"] for one in processes.values()} == {SECCOMP_FILTER}


@pytest.mark.parametrize("node", NODES)
def test_whoever_else_runs_there_has_no_more(ciliumd: Ciliumd, node: str) -> None:
    """The health endpoint's process has rights in a user namespace of its own, over its own network only."""
    names = dict(line.split() for line in python(ciliumd, node, USER_NAMESPACES).splitlines())
    wanted = mask(CAPABILITIES)

    for number, fields in statuses(ciliumd, node).items():
        own = names.get(str(number), names["1"]) != names["1"]
        assert own or int(fields["CapEff"], 16) & ~wanted == 0, fields


@pytest.mark.parametrize("node", NODES)
def test_the_image_cannot_be_written(ciliumd: Ciliumd, node: str) -> None:
    """Read-only root file system."""
    words = ["touch", *(f"{place}/written" for place in READ_ONLY)]
    done = ciliumd.exec(ciliumd.cluster.node(node), *words, check=False)

    assert done.returncode != 0
    assert done.stderr.count("Read-only file system") == len(READ_ONLY)


@pytest.mark.parametrize("node", NODES)
def test_calls_that_an_agent_never_makes_are_refused(
    ciliumd: Ciliumd, node: str, record_property: Record
) -> None:
    """By the profile, also where the agent's rights would do; what C libraries try first is "not there"."""
    said = json.loads(python(ciliumd, node, FORBIDDEN))
    refused = sum(answer == "EPERM" for answer in said.values())
    record(record_property, "S4", forbidden_calls=len(said) - 1, refused=refused)

    assert said.pop(MISSING) == "ENOSYS"
    assert said == dict.fromkeys(said, "EPERM")
    assert len(said) == 12


def test_what_people_run_there_works(ciliumd: Ciliumd) -> None:
    """Under the same profile, without a word of complaint."""
    script = "\n".join(f"{tool} >/dev/null || echo failed: {tool}" for tool in TOOLS)
    done = ciliumd.exec(ciliumd.cluster.node(NODES[0]), "sh", "-c", script, check=False)

    assert (done.returncode, done.stdout) == (0, "")
    assert "not permitted" not in done.stderr


@pytest.mark.parametrize("node", NODES)
def test_files_and_sockets_are_roots(ciliumd: Ciliumd, node: str, record_property: Record) -> None:
    """Nothing of ours is open to others: pins 0600, sockets and state at most 0660."""
    words = ["find", *OURS.split(), "-printf", "%m %U:%G %y %p\\n"]
    listed = ciliumd.exec(ciliumd.cluster.node(node), *words).stdout.splitlines()
    seen = [line.split(" ", 3) for line in listed]
    kinds = {kind for _, _, kind, _ in seen}
    pins = sum(path.startswith("/sys/fs/bpf") and kind == "f" for _, _, kind, path in seen)
    sockets = sum(kind == "s" for _, _, kind, _ in seen)
    record(record_property, "S1", files_looked_at=len(seen), pins=pins, socket_files=sockets)

    assert kinds == {"d", "f", "s"}
    assert len(seen) > 40
    for mode, owner, kind, path in seen:
        bits = int(mode, 8)
        assert owner == "0:0", path
        if path in OPEN_DIRECTORIES:
            assert bits & (stat.S_IWGRP | stat.S_IWOTH) == 0, path
        elif path.startswith("/sys/fs/bpf"):
            assert bits == (0o700 if kind == "d" else 0o600), (path, mode)
        else:
            assert bits & ~(0o770 if kind == "d" else 0o660) == 0, (path, mode)


@pytest.mark.parametrize("node", NODES)
def test_nothing_is_anybodys_to_write(ciliumd: Ciliumd, node: str, record_property: Record) -> None:
    """In all of the container where anything can be written: mounts of the node, what the runtime adds."""
    found = json.loads(python(ciliumd, node, ANYBODYS))
    record(
        record_property, "S1", files_and_directories=found["seen"], anybodys=len(set(found["open"]) - SCRATCH)
    )

    assert set(found["open"]) - SCRATCH == set()
    assert "/tmp" in found["open"]  # noqa: S108  # it finds what there is
    assert found["seen"] > 40


@pytest.mark.parametrize("node", NODES)
def test_sockets_have_a_name_in_the_agents_directory(
    ciliumd: Ciliumd, node: str, record_property: Record
) -> None:
    """None in the abstract namespace, which has no modes: whoever is on the node could connect."""
    text = ciliumd.exec(ciliumd.cluster.node(node), "ss", "--no-header", "-lxp").stdout
    names = [line.split()[4] for line in text.splitlines() if '"ciliumd"' in line]
    record(record_property, "S1", listening=len(names), outside=sum("/cilium/" not in one for one in names))

    assert sorted(name.rpartition("/")[2] for name in names) == SOCKETS
    assert [name for name in names if not name.startswith("/var/run/cilium/")] == []


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("name", ["cilium.sock", "cni.sock"])
def test_who_is_not_root_is_refused_by_the_sockets(
    ciliumd: Ciliumd, node: str, name: str, record_property: Record
) -> None:
    """A user of the node, in no group of ours."""
    words = ["/usr/bin/python3", "-c", OUTSIDER, f"/var/run/cilium/{name}"]
    said = ciliumd.cluster.node(node).run(words).stdout.strip()
    record(record_property, "S1", strangers=1, strangers_refused=said == "EACCES")

    assert said == "EACCES"


@pytest.mark.parametrize("node", NODES)
def test_who_listens(ciliumd: Ciliumd, cluster: Cluster, node: str, record_property: Record) -> None:
    """On the loopback address, but for the answer to health probes of other nodes; and the tunnel's port."""
    text = ciliumd.exec(cluster.node(node), "ss", "--no-header", "-ltnp").stdout
    ours = {line.split()[3] for line in text.splitlines() if '"ciliumd"' in line}
    outside = {place for place in ours if not place.startswith("127.0.0.1:")}
    record(record_property, "S1", TCP_listeners=len(ours), of_them_not_on_loopback=len(outside))

    assert outside == {f"{cluster.node(node).address}:{HEALTH_PORT}"}
    assert len(ours) > 1


def test_an_agent_cannot_take_over_another_node(
    ciliumd: Ciliumd, kubectl: Kubectl, record_property: Record
) -> None:
    """With the token in its container: the API server knows which node it is of."""
    said = python(ciliumd, "node1", OTHER_NODE, "node2")
    record(record_property, "S3", writes_to_other_nodes_refused=said.startswith("403 "))

    assert said.startswith("403 ")
    assert 'the agent of node "node1" may not write the CiliumNode of node2' in said
    assert "taken" not in kubectl.get("ciliumnode", "node2")["metadata"].get("labels", {})


def test_the_operator_is_nobody(ciliumd: Ciliumd, kubectl: Kubectl) -> None:
    """Not root, no capability, the runtime's own filter."""
    pods = kubectl.list("pods", namespace=NAMESPACE, selector="io.cilium/app=operator")
    pod = next(one for one in pods if one["status"].get("phase") == "Running")
    script = "print(open('/proc/1/status').read())"
    text = kubectl.exec(pod["metadata"]["name"], "python3", "-c", script, namespace=NAMESPACE).stdout
    fields = dict(re.findall(r"^(\w+):\s*(.*)$", text, re.MULTILINE))

    assert set(fields["Uid"].split()) == {"65532"}
    assert {int(fields[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {0}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", SECCOMP_FILTER)


def test_nothing_was_refused_so_far(ciliumd: Ciliumd, kubectl: Kubectl) -> None:
    """An agent that is denied a call it needs says so, and is restarted or not well."""
    for node in ciliumd.cluster.nodes:
        assert "Operation not permitted" not in ciliumd.logs(node)
        statuses = ciliumd.agent(node)["status"]["containerStatuses"]
        assert all(one["ready"] for one in statuses if one["name"] == AGENT)
