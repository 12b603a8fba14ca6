# SPDX-License-Identifier: Apache-2.0
"""What the chart installs: names clients look for, rights, privileges, mounts, and the way out."""

import shutil

import pytest
import yaml

from chart.conftest import CHART, KUBERNETES, settings
from ciliumd import __version__

READ = {"get", "list", "watch"}
AGENT = {
    ("", "namespaces"): READ,
    ("", "nodes"): READ,
    ("", "pods"): READ,
    ("", "services"): READ,
    ("", "events"): {"create"},
    ("discovery.k8s.io", "endpointslices"): READ,
    ("networking.k8s.io", "networkpolicies"): READ,
    ("cilium.io", "ciliumcidrgroups"): READ,
    ("cilium.io", "ciliumnetworkpolicies"): READ,
    ("cilium.io", "ciliumclusterwidenetworkpolicies"): READ,
    ("cilium.io", "ciliumidentities"): READ | {"create"},
    ("cilium.io", "ciliumendpoints"): READ | {"create", "update", "delete"},
    ("cilium.io", "ciliumnodes"): READ | {"create", "update"},
}
OPERATOR = {
    ("", "namespaces"): READ,
    ("", "pods"): READ | {"delete"},
    ("", "nodes"): READ | {"patch"},
    ("", "nodes/status"): {"patch"},
    ("", "events"): {"create"},
    ("", "services"): READ,
    ("discovery.k8s.io", "endpointslices"): READ,
    ("networking.k8s.io", "networkpolicies"): READ,
    ("networking.k8s.io", "servicecidrs"): {"list"},
    ("apiextensions.k8s.io", "customresourcedefinitions"): {"create", "get", "update"},
    ("cilium.io", "ciliumcidrgroups"): READ,
    ("cilium.io", "ciliumnetworkpolicies"): READ,
    ("cilium.io", "ciliumclusterwidenetworkpolicies"): READ,
    ("cilium.io", "ciliumnetworkpolicies/status"): {"patch"},
    ("cilium.io", "ciliumclusterwidenetworkpolicies/status"): {"patch"},
    ("cilium.io", "ciliumendpoints"): READ | {"delete"},
    ("cilium.io", "ciliumidentities"): READ | {"delete", "patch"},
    ("cilium.io", "ciliumnodes"): READ | {"patch", "delete"},
    ("cilium.io", "ciliumnodes/status"): {"patch"},
}
MOUNTING = {"SYS_ADMIN", "SYS_CHROOT", "SYS_PTRACE"}
CAPABILITIES = {
    "install-seccomp-profile": set(),
    "config": set(),
    "mount-cgroup": MOUNTING,
    "apply-sysctl-overwrites": set(),
    "mount-bpf-fs": MOUNTING,
    "clean-cilium-state": {"NET_ADMIN", "BPF"},
    "install-cni-binaries": set(),
    "cilium-agent": {"NET_ADMIN", "BPF", "PERFMON", "NET_RAW"},
}
# What clients of Cilium read to know what a cluster has.
FEATURES = [
    "cni-chaining-mode",
    "enable-ipv4",
    "enable-ipv6",
    "enable-endpoint-routes",
    "mesh-auth-mutual-enabled",
    "enable-ingress-controller",
    "enable-ipv4-egress-gateway",
    "enable-ipv6-egress-gateway",
    "policy-cidr-match-mode",
    "enable-gateway-api",
    "enable-envoy-config",
    "wireguard-encapsulate",
    "ipam",
    "enable-ipsec",
    "clustermesh-enable-endpoint-sync",
    "enable-local-redirect-policy",
    "bpf-lb-external-clusterip",
    "enable-bgp-control-plane",
    "multicast-enabled",
    "enable-encryption-strict-mode",
    "enable-policy-secrets-sync",
    "routing-mode",
    "tunnel-protocol",
    "cluster-name",
]


def granted(role):
    """Verbs by API group and resource."""
    found = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                found.setdefault((group, resource), set()).update(rule["verbs"])
    return found


def test_exactly_these_objects(default):
    """No custom resource definition: those are the operator's."""
    assert default.names() == {
        ("ConfigMap", "cilium-config"),
        ("ConfigMap", "cilium-seccomp"),
        ("ServiceAccount", "cilium"),
        ("ServiceAccount", "cilium-operator"),
        ("ClusterRole", "cilium"),
        ("ClusterRole", "cilium-operator"),
        ("ClusterRoleBinding", "cilium"),
        ("ClusterRoleBinding", "cilium-operator"),
        ("Role", "cilium-config-agent"),
        ("Role", "cilium-operator"),
        ("RoleBinding", "cilium-config-agent"),
        ("RoleBinding", "cilium-operator"),
        ("DaemonSet", "cilium"),
        ("Deployment", "cilium-operator"),
        ("Service", "cilium-operator"),
        ("ValidatingAdmissionPolicy", "cilium-agent-own-node"),
        ("ValidatingAdmissionPolicy", "cilium-agent-own-endpoints"),
        ("ValidatingAdmissionPolicyBinding", "cilium-agent-own-node"),
        ("ValidatingAdmissionPolicyBinding", "cilium-agent-own-endpoints"),
    }
    assert all(
        one["metadata"]["namespace"] == "kube-system"
        for one in default
        if not one["kind"].startswith(("Cluster", "ValidatingAdmission"))
    )


@pytest.mark.parametrize(
    ("values", "version", "expected"),
    [({}, "1.30.0", 4), ({}, "1.29.9", 0), ({"rbac.ownNodeOnly": "false"}, "1.34.4", 0)],
)
def test_agents_write_of_their_own_node_where_tokens_say_which_that_is(render, values, version, expected):
    """The policy names the agents' account; tests/api has a real API server judge by it."""
    found = render(values | {"serviceAccounts.cilium.name": "other"}, version=version)
    policies = [one for one in found if one["kind"].startswith("ValidatingAdmission")]
    assert len(policies) == expected
    for one in policies:
        for condition in one["spec"].get("matchConditions", ()):
            assert "system:serviceaccount:kube-system:other" in condition["expression"]


def test_rights_are_those_that_are_used(default):
    """Verb by verb."""
    assert granted(default.of("ClusterRole", "cilium")) == AGENT
    assert granted(default.of("ClusterRole", "cilium-operator")) == OPERATOR
    assert granted(default.of("Role", "cilium-operator")) == {
        ("coordination.k8s.io", "leases"): {"create", "get", "update"}
    }
    assert default.of("Role", "cilium-config-agent")["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": ["cilium-config"],
            "verbs": ["get"],
        },
        {"apiGroups": ["cilium.io"], "resources": ["ciliumnodeconfigs"], "verbs": ["list"]},
    ]


def test_bindings_are_of_the_accounts(render):
    """Also when those have other names."""
    found = render({"serviceAccounts.cilium.name": "a", "serviceAccounts.operator.name": "b"})
    subjects = {
        (one["roleRef"]["kind"], one["roleRef"]["name"]): [
            (s["name"], s["namespace"]) for s in one["subjects"]
        ]
        for one in found
        if one["kind"].endswith("RoleBinding")
    }
    assert subjects == {
        ("ClusterRole", "cilium"): [("a", "kube-system")],
        ("Role", "cilium-config-agent"): [("a", "kube-system")],
        ("ClusterRole", "cilium-operator"): [("b", "kube-system")],
        ("Role", "cilium-operator"): [("b", "kube-system")],
    }
    assert found.agent["serviceAccountName"] == "a"


def test_labels_clients_select_by(default):
    """`cilium status`, `cilium connectivity test` and `cilium sysdump` of Cilium's CLI."""
    agent = default.of("DaemonSet", "cilium")
    assert agent["spec"]["selector"] == {"matchLabels": {"k8s-app": "cilium"}}
    labels = agent["spec"]["template"]["metadata"]["labels"]
    assert labels["k8s-app"] == "cilium"
    assert labels["app.kubernetes.io/part-of"] == "cilium"
    assert labels["app.kubernetes.io/name"] == "cilium-agent"
    labels = default.of("Deployment", "cilium-operator")["spec"]["template"]["metadata"]["labels"]
    assert (labels["io.cilium/app"], labels["name"]) == ("operator", "cilium-operator")
    assert labels["app.kubernetes.io/part-of"] == "cilium"
    assert [one["name"] for one in default.agent["containers"]] == ["cilium-agent"]


@pytest.mark.parametrize("key", FEATURES)
def test_keys_clients_read(default, key):
    """Present, whatever they say."""
    assert key in default.config


def test_capabilities_are_listed_one_by_one(render):
    """All dropped, these given back, no way to more; the root file system cannot be written."""
    found = render({"cgroup.autoMount.enabled": "true"})
    containers = [*found.agent["initContainers"], *found.agent["containers"]]
    contexts = {one["name"]: one["securityContext"] for one in containers}
    assert {name: set(one["capabilities"].get("add", ())) for name, one in contexts.items()} == CAPABILITIES
    for context in contexts.values():
        assert context["capabilities"]["drop"] == ["ALL"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
    assert "privileged" not in found.text
    assert "SYS_RESOURCE" not in found.text
    assert "hostPID" not in found.text


def test_the_operator_needs_nothing(default):
    """Not even to be root."""
    pod = default.of("Deployment", "cilium-operator")["spec"]["template"]["spec"]
    context = pod["containers"][0]["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert [volume for volume in pod["volumes"] if "hostPath" in volume] == []


def test_app_armor_is_said_as_the_version_wants_it(render):
    """A field from 1.30 on, annotations before."""
    new = render(version="1.30.0").of("DaemonSet", "cilium")["spec"]["template"]
    assert new["spec"]["securityContext"]["appArmorProfile"] == {"type": "Unconfined"}
    assert not [key for key in new["metadata"]["annotations"] if "apparmor" in key]
    old = render(version="1.29.9").of("DaemonSet", "cilium")["spec"]["template"]
    assert "appArmorProfile" not in old["spec"]["securityContext"]
    names = {one["name"] for one in (*old["spec"]["initContainers"], *old["spec"]["containers"])}
    prefix = "container.apparmor.security.beta.kubernetes.io/"
    assert {key.removeprefix(prefix) for key in old["metadata"]["annotations"] if prefix in key} == names


def test_an_older_kubernetes_is_refused(template):
    """By helm, before anything is installed."""
    assert "chart requires kubeVersion: >= 1.27.0-0" in template(version="1.26.0").stderr


def test_what_of_the_node_is_mounted(default):
    """Paths of the node, and who may write them."""
    volumes = {one["name"]: one["hostPath"]["path"] for one in default.agent["volumes"] if "hostPath" in one}
    mounts = {
        (one["name"], volumes[mount["name"]], mount.get("readOnly", False), mount.get("mountPropagation"))
        for one in (*default.agent["initContainers"], *default.agent["containers"])
        for mount in one["volumeMounts"]
        if mount["name"] in volumes
    }
    agent = "cilium-agent"
    assert mounts == {
        ("apply-sysctl-overwrites", "/proc/sys/net", False, None),
        ("apply-sysctl-overwrites", "/etc/sysctl.d", False, None),
        ("mount-bpf-fs", "/proc", True, None),
        ("clean-cilium-state", "/sys/fs/bpf", False, "HostToContainer"),
        ("clean-cilium-state", "/var/run/cilium", False, None),
        ("install-cni-binaries", "/opt/cni/bin", False, None),
        ("install-seccomp-profile", "/var/lib/kubelet/seccomp", False, None),
        (agent, "/proc/sys/net", False, None),
        (agent, "/sys/fs/bpf", False, "HostToContainer"),
        (agent, "/sys/fs/cgroup", True, "HostToContainer"),
        (agent, "/var/run/cilium", False, None),
        (agent, "/etc/cni/net.d", False, None),
    }


@pytest.mark.parametrize(
    ("values", "gone"),
    [
        ({"bpf.autoMount.enabled": "false"}, ("mount-bpf-fs", "/proc")),
        ({"sysctlfix.enabled": "false"}, ("apply-sysctl-overwrites", "/etc/sysctl.d")),
        ({"cni.install": "false"}, ("install-cni-binaries", "/opt/cni/bin")),
        (
            {"securityContext.seccomp.enabled": "false"},
            ("install-seccomp-profile", "/var/lib/kubelet/seccomp"),
        ),
    ],
)
def test_what_is_switched_off_is_not_mounted(render, values, gone):
    """Neither container nor volume."""
    found = render(values)
    container, path = gone
    assert container not in {one["name"] for one in found.agent["initContainers"]}
    assert path not in {one["hostPath"]["path"] for one in found.agent["volumes"] if "hostPath" in one}


def test_every_volume_is_used_and_every_mount_has_one(render):
    """In each shape of the pod."""
    for values in ({}, {"cleanup.enabled": "true"}, {"cni.install": "false", "sysctlfix.enabled": "false"}):
        pod = render(values).agent
        containers = (*pod["initContainers"], *pod["containers"])
        used = {mount["name"] for one in containers for mount in one.get("volumeMounts", ())}
        assert used == {volume["name"] for volume in pod["volumes"]}


def test_the_node_waits_for_nothing_else(default):
    """It is there before anything can be scheduled, on every node."""
    pod = default.agent
    assert pod["priorityClassName"] == "system-node-critical"
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["hostNetwork"] is True
    assert pod["terminationGracePeriodSeconds"] == 1
    assert "lifecycle" not in default.container("cilium-agent")
    update = default.of("DaemonSet", "cilium")["spec"]["updateStrategy"]
    assert update == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}


def test_probes(render):
    """On the loopback address; only readiness cares for the API server."""
    agent = render({"healthPort": "9880"}).container("cilium-agent")
    headers = {}
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        get = agent[name]["httpGet"]
        assert (get["host"], get["port"], get["path"]) == ("127.0.0.1", 9880, "/healthz")
        headers[name] = {one["name"]: one["value"] for one in get["httpHeaders"]}
    assert headers["readinessProbe"] == {"brief": "true"}
    alone = {"brief": "true", "require-k8s-connectivity": "false"}
    assert headers["startupProbe"] == headers["livenessProbe"] == alone


def test_without_kube_proxy_the_server_is_named(render):
    """To the agent, to the container that reads the ConfigMap, and to the operator."""
    found = render({"k8sServiceHost": "192.0.2.1", "k8sServicePort": "6443"})
    operator = found.of("Deployment", "cilium-operator")["spec"]["template"]["spec"]["containers"][0]
    for container in (found.container("cilium-agent"), found.container("config"), operator):
        env = {one["name"]: one.get("value") for one in container["env"]}
        assert env["KUBERNETES_SERVICE_HOST"] == "192.0.2.1"
        assert env["KUBERNETES_SERVICE_PORT"] == "6443"


def test_another_configuration_is_another_pod(render):
    """Options are read at start."""
    key = "cilium.io/cilium-configmap-checksum"
    one, two = (
        {
            kind: found.of(kind, name)["spec"]["template"]["metadata"]["annotations"][key]
            for kind, name in (("DaemonSet", "cilium"), ("Deployment", "cilium-operator"))
        }
        for found in (render(), render({"MTU": "1400"}))
    )
    assert all(one[kind] != two[kind] for kind in one)


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ({}, f"quay.io/ciliumd/ciliumd:v{__version__}"),
        ({"image.tag": "latest"}, "quay.io/ciliumd/ciliumd:latest"),
        (
            {"image.useDigest": "true", "image.digest": f"sha256:{'0' * 64}"},
            f"quay.io/ciliumd/ciliumd:v{__version__}@sha256:{'0' * 64}",
        ),
    ],
)
def test_one_image_for_everything(render, values, image):
    """The version is the chart's."""
    found = render(values)
    pods = (found.agent, found.of("Deployment", "cilium-operator")["spec"]["template"]["spec"])
    containers = [one for pod in pods for one in (*pod.get("initContainers", ()), *pod["containers"])]
    assert {one["image"] for one in containers} == {image}
    assert {one["imagePullPolicy"] for one in containers} == {"IfNotPresent"}


def test_metrics(render):
    """Services and monitors where they are asked for."""
    values = {
        "prometheus.enabled": "true",
        "prometheus.serviceMonitor.enabled": "true",
        "operator.prometheus.serviceMonitor.enabled": "true",
    }
    found = render(values)
    assert {
        ("Service", "cilium-agent"),
        ("ServiceMonitor", "cilium-agent"),
        ("ServiceMonitor", "cilium-operator"),
    } <= (found.names())
    for name in ("cilium-agent", "cilium-operator"):
        service, monitor = found.of("Service", name), found.of("ServiceMonitor", name)
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert service["spec"]["ports"][0]["targetPort"] == "prometheus"


def test_cleaning_takes_the_agents_away_and_mounts_what_has_to_go(render):
    """One init container does it; that the pod runs says that the node is clean."""
    found = render({"cleanup.enabled": "true"})
    assert ("Deployment", "cilium-operator") not in found.names()
    assert [one["name"] for one in found.agent["initContainers"]] == ["cleanup", "remove-seccomp-profile"]
    assert found.container("remove-seccomp-profile")["command"] == ["rm", "-rf", "/host/seccomp/ciliumd"]
    cleanup = found.container("cleanup")
    assert cleanup["command"][:4] == ["cilium-dbg", "cleanup", "--force", "--all-state"]
    assert {mount["mountPath"] for mount in cleanup["volumeMounts"]} == {
        "/sys/fs/bpf",
        "/host/var/run",
        "/host/etc/cni/net.d",
        "/host/opt/cni/bin",
        "/host/etc/sysctl.d",
        "/tmp",  # noqa: S108  an empty volume
    }
    assert found.container("cilium-agent")["command"] == ["sleep", "infinity"]


def test_the_configuration_can_go_with_the_agent(render):
    """Only where it is asked for."""
    agent = render({"cni.uninstall": "true"}).container("cilium-agent")
    command = agent["lifecycle"]["preStop"]["exec"]["command"]
    assert command == ["rm", "-f", "/host/etc/cni/net.d/05-cilium.conflist"]


def test_everything_can_be_annotated_and_labelled(render):
    """And the pods on their own."""
    found = render({"annotations.team": "net", "podAnnotations.a": "b", "podLabels.c": "d"})
    assert all(one["metadata"]["annotations"]["team"] == "net" for one in found)
    pod = found.of("DaemonSet", "cilium")["spec"]["template"]["metadata"]
    assert (pod["annotations"]["a"], pod["labels"]["c"]) == ("b", "d")


@pytest.mark.parametrize(
    ("values", "commands", "advice"),
    [
        ({}, ["rollout status daemonset/cilium", "-- cilium status"], True),
        ({"k8sServiceHost": "192.0.2.1"}, ["rollout status daemonset/cilium", "-- cilium status"], False),
        ({"kubeProxyReplacement": "false"}, ["rollout status daemonset/cilium", "-- cilium status"], False),
        ({"cleanup.enabled": "true"}, ["rollout status daemonset/cilium", "helm uninstall cilium"], False),
    ],
)
def test_notes_say_what_to_type_next(helm, tmp_path, values, commands, advice):
    """Rendered as a template: helm prints notes only beside a cluster."""
    chart = shutil.copytree(CHART, tmp_path / "chart")
    (chart / "templates" / "NOTES.txt").rename(chart / "files" / "notes.txt")
    (chart / "templates" / "notes.yaml").write_text(
        'notes: {{ tpl (.Files.Get "files/notes.txt") . | toJson }}\n'
    )
    done = helm(
        *("template", "cilium", str(chart), "--kube-version", KUBERNETES, "--show-only=templates/notes.yaml"),
        *settings(values),
    )
    assert done.returncode == 0, done.stderr
    notes = next(yaml.safe_load_all(done.stdout))["notes"]
    lines = [line for line in notes.splitlines() if line.startswith("  ")]
    assert [command in line for command, line in zip(commands, lines, strict=True)] == [True, True]
    assert ("set k8sServiceHost and k8sServicePort" in notes) is advice
