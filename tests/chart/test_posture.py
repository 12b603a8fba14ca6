# SPDX-License-Identifier: Apache-2.0
"""The profile of system calls, what baseline would refuse, and what the pods may take of a node."""

import hashlib
import json
import re

from chart.conftest import CHART

PROFILE = CHART / "files" / "seccomp.json"
MOST_CALLS = 120
NEVER = {
    *("add_key", "delete_module", "finit_module", "init_module", "kexec_file_load", "kexec_load", "keyctl"),
    *("io_uring_enter", "io_uring_register", "mount", "move_mount", "open_by_handle_at", "perf_event_open"),
    *("pivot_root", "process_vm_readv", "process_vm_writev", "ptrace", "reboot", "request_key", "seccomp"),
    *("setgid", "sethostname", "settimeofday", "setuid", "swapon", "umount2", "userfaultfd", "mknodat"),
}
# Of README: what Pod Security "baseline" would refuse, in which container, and why; there is no other.
ROW = re.compile(r"^\| ([^|]+) \| `?([^|`]+)`? \| ([^|]+) \|$", re.MULTILINE)
OPTIONS = (
    {
        "prometheus.enabled": "true",
        "cgroup.autoMount.enabled": "true",
        "socketLB.terminatePodConnections": "true",
    },
    {"cleanup.enabled": "true"},
)
PODS = {
    ("DaemonSet", "cilium"): "the agent's pod",
    ("Deployment", "cilium-operator"): "the operator's pod",
}
BASELINE_CAPABILITIES = {
    *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE"),
    *("SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
}


def profile():
    """The file."""
    return json.loads(PROFILE.read_text())


def test_the_profile_is_an_allow_list_of_at_most_120_calls(record_property):
    """Everything else is refused; namespaces and threads by their flags only."""
    rules = profile()["syscalls"]
    allowed = [rule for rule in rules if rule["action"] == "SCMP_ACT_ALLOW"]
    names = {name for rule in allowed for name in rule["names"]}
    by_flags = {name for rule in allowed if "args" in rule for name in rule["names"]}

    record_property("data", json.dumps({"case": "S4", "calls allowed": len(names)}))
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


def of_container(one, pod):
    """What "baseline" would refuse of a container."""
    context = one["securityContext"]
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}
    yield from set(context["capabilities"].get("add", ())) - BASELINE_CAPABILITIES
    yield from (f"hostPath {paths[on['name']]}" for on in one.get("volumeMounts", ()) if on["name"] in paths)
    yield from (f"hostPort {port['hostPort']}" for port in one.get("ports", ()) if "hostPort" in port)
    if context.get("privileged"):
        yield "privileged"
    if context.get("seccompProfile", pod["securityContext"].get("seccompProfile"))["type"] == "Unconfined":
        yield "seccomp Unconfined"


def exceptions(pod, name):
    """What "baseline" would refuse of a pod and its containers."""
    for one in (*pod.get("initContainers", ()), *pod["containers"]):
        yield from ((what, one["name"]) for what in of_container(one, pod))
    yield from ((f"host{kind}", name) for kind in ("Network", "PID", "IPC") if pod.get(f"host{kind}"))
    if pod["securityContext"].get("appArmorProfile", {}).get("type") == "Unconfined":
        yield "AppArmor Unconfined", name


def test_exceptions_from_baseline_are_listed_one_by_one(render, record_property):
    """With a reason, by container, whatever is switched on; and none is listed that is not there."""
    found = set()
    for values in OPTIONS:
        rendered = render(values)
        for (kind, name), pod in PODS.items():
            if (kind, name) in rendered.names():
                found |= set(exceptions(rendered.of(kind, name)["spec"]["template"]["spec"], pod))
    rows = ROW.findall((CHART / "README.md").read_text())
    listed = [(what, container) for what, container, why in rows if (what, why) != ("exception", "why")]
    data = {"case": "S5", "exceptions": len(found), "listed": len(listed)}
    record_property("data", json.dumps(data))

    assert sorted(listed) == sorted(found)
    assert "privileged" not in {what for what, _ in found}


def test_pods_are_limited_and_go_first(default, record_property):
    """Memory has a limit, processor time has none; scheduled first, evicted last, replaced one by one."""
    for kind, name, priority in (
        ("DaemonSet", "cilium", "system-node-critical"),
        ("Deployment", "cilium-operator", "system-cluster-critical"),
    ):
        pod = default.of(kind, name)["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["priorityClassName"] == priority
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        assert set(container["resources"]["limits"]) == {"memory"}
    update = default.of("DaemonSet", "cilium")["spec"]["updateStrategy"]
    record_property(
        "data", json.dumps({"case": "S5", "pods with limits and priority": 2, **update["rollingUpdate"]})
    )
    assert update == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}
