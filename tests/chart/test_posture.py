# SPDX-License-Identifier: Apache-2.0
"""The profile of system calls, what baseline would refuse, and what the pods may take of a node."""

import hashlib
import json

import pytest

from chart.conftest import CHART

PROFILE = CHART / "files" / "seccomp.json"
MOST_CALLS = 120
NEVER = {
    *("add_key", "delete_module", "finit_module", "init_module", "kexec_file_load", "kexec_load", "keyctl"),
    *("io_uring_enter", "io_uring_register", "mount", "move_mount", "open_by_handle_at", "perf_event_open"),
    *("pivot_root", "process_vm_readv", "process_vm_writev", "ptrace", "reboot", "request_key", "seccomp"),
    *("setgid", "sethostname", "settimeofday", "setuid", "swapon", "umount2", "userfaultfd", "mknodat"),
}
# Every exception from Pod Security "baseline", with the reason; there is no other.
EXCEPTIONS = {
    "hostNetwork": "it configures the node's network",
    "hostPath": "maps, state, sockets and the CNI of the node",
    "capabilities": "values.yaml says what each is for",
    "hostPorts": "metrics, where they are asked for",
    "seccomp Unconfined": "containers that mount; the agent has its own profile, all others the runtime's",
    "appArmor Unconfined": "the default profile refuses mount(2)",
}
BASELINE_CAPABILITIES = {
    *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE"),
    *("SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
}


def profile():
    """The file."""
    return json.loads(PROFILE.read_text())


def test_the_profile_is_an_allow_list_of_at_most_120_calls():
    """Everything else is refused; namespaces and threads by their flags only."""
    rules = profile()["syscalls"]
    allowed = [rule for rule in rules if rule["action"] == "SCMP_ACT_ALLOW"]
    names = {name for rule in allowed for name in rule["names"]}
    by_flags = {name for rule in allowed if "args" in rule for name in rule["names"]}

    assert profile()["defaultAction"] == "SCMP_ACT_ERRNO"
    assert len(names) <= MOST_CALLS
    assert names & NEVER == set()
    assert by_flags == {"clone", "setns", "unshare"}
    assert not [rule for rule in allowed if "args" not in rule and by_flags & set(rule["names"])]
    assert all(rule["comment"] for rule in rules)


def test_the_agent_runs_under_it_and_the_others_under_the_runtimes(default):
    """What mounts has none, and ends before the agent starts."""
    digest = hashlib.sha256(PROFILE.read_bytes()).hexdigest()[:12]
    name = f"ciliumd/agent-{digest}.json"
    kinds = {}
    for one in (*default.agent["initContainers"], *default.agent["containers"]):
        kinds[one["name"]] = one["securityContext"].get("seccompProfile", {}).get("type", "of the pod")
    agent = default.container("cilium-agent")["securityContext"]["seccompProfile"]

    assert agent == {"type": "Localhost", "localhostProfile": name}
    assert default.container("install-seccomp-profile")["command"][-1] == f"/host/seccomp/{name}"
    assert json.loads(default.of("ConfigMap", "cilium-seccomp")["data"]["agent.json"]) == profile()
    assert {name for name, kind in kinds.items() if kind == "of the pod"} == {
        "mount-bpf-fs",
        "clean-cilium-state",
    }
    assert {kind for kind in kinds.values() if kind != "of the pod"} == {"Localhost", "RuntimeDefault"}


def test_the_profile_can_be_elsewhere_or_not_at_all(render):
    """As the kubelet's --root-dir says."""
    found = render({"securityContext.seccomp.path": "/data/kubelet/seccomp"})
    volume = next(one for one in found.agent["volumes"] if one["name"] == "seccomp")
    assert volume["hostPath"]["path"] == "/data/kubelet/seccomp"
    without = render({"securityContext.seccomp.enabled": "false"})
    assert ("ConfigMap", "cilium-seccomp") not in without.names()
    assert "seccompProfile" not in without.container("cilium-agent")["securityContext"]


def exceptions(pod):
    """What Pod Security "baseline" would refuse of a pod."""
    contexts = [
        one.get("securityContext", {}) for one in (*pod.get("initContainers", ()), *pod["containers"])
    ]
    added = {name for one in contexts for name in one.get("capabilities", {}).get("add", ())}
    found = {f"host{kind}" for kind in ("Network", "PID", "IPC") if pod.get(f"host{kind}")}
    found |= {"hostPath" for volume in pod["volumes"] if "hostPath" in volume}
    found |= {"capabilities" for _ in added - BASELINE_CAPABILITIES}
    found |= {"privileged" for one in contexts if one.get("privileged")}
    found |= {
        "hostPorts" for one in pod["containers"] for port in one.get("ports", ()) if port.get("hostPort")
    }
    for name in ("seccomp", "appArmor"):
        profiles = [one.get(f"{name}Profile", {}) for one in (pod["securityContext"], *contexts)]
        found |= {f"{name} Unconfined" for one in profiles if one.get("type") == "Unconfined"}
    return found


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("DaemonSet", "cilium", set(EXCEPTIONS)),
        ("Deployment", "cilium-operator", {"hostNetwork", "hostPorts"}),
    ],
)
def test_exceptions_from_baseline_are_listed(render, kind, name, expected):
    """One by one; the operator has what its place in the node's network brings."""
    values = {"prometheus.enabled": "true", "operator.prometheus.enabled": "true"}
    assert exceptions(render(values).of(kind, name)["spec"]["template"]["spec"]) == expected


def test_pods_are_limited_and_go_first(default):
    """Memory has a limit, processor time has none; they are scheduled first and evicted last."""
    for kind, name, priority in (
        ("DaemonSet", "cilium", "system-node-critical"),
        ("Deployment", "cilium-operator", "system-cluster-critical"),
    ):
        pod = default.of(kind, name)["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["priorityClassName"] == priority
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        assert set(container["resources"]["limits"]) == {"memory"}
