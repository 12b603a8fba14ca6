# SPDX-License-Identifier: Apache-2.0
"""``cilium`` away from an agent: when it is meant, what it draws, and how it ends."""

import base64
import gzip
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from lightkube.core.exceptions import ApiError
from lightkube.models.apps_v1 import (
    DaemonSetSpec,
    DaemonSetStatus,
    DeploymentSpec,
    DeploymentStatus,
)
from lightkube.models.core_v1 import (
    Container,
    ContainerState,
    ContainerStateWaiting,
    ContainerStatus,
    PodSpec,
    PodStatus,
    PodTemplateSpec,
)
from lightkube.models.meta_v1 import LabelSelector, ObjectMeta
from lightkube.resources.apps_v1 import DaemonSet, Deployment
from lightkube.resources.core_v1 import Pod, Secret

from ciliumd.cli import outer, outer_cluster, outer_status
from ciliumd.cli.errors import CommandError
from ciliumd.cli.outer_status import COMPONENTS, ClusterStatus, ComponentState, Counts, PodState

AGENT, OPERATOR, ENVOY, RELAY, MESH, UI = COMPONENTS


def component(one, image, desired=1, ready=1):
    """A component whose pods run *image*."""
    pods = tuple(PodState(f"{one.name}-{number}", "Running", (image,)) for number in range(desired))
    return ComponentState(one, Counts(desired, ready, ready, desired - ready), pods)


# The installation of the article, whose Hubble line has been split since.
ARTICLE = ClusterStatus(
    components=(
        component(AGENT, "quay.io/cilium/cilium:v1.10.3"),
        component(OPERATOR, "quay.io/cilium/operator-generic:v1.10.3"),
        ComponentState(ENVOY),
        component(RELAY, "quay.io/cilium/hubble-relay:v1.10.3"),
        ComponentState(MESH),
        ComponentState(UI),
    ),
    managed=18,
    pods=18,
    chart="1.10.3",
)
PICTURE = """\
    /¯¯\\
 /¯¯\\__/¯¯\\    Cilium:             OK
 \\__/¯¯\\__/    Operator:           OK
 /¯¯\\__/¯¯\\    Envoy DaemonSet:    disabled
 \\__/¯¯\\__/    Hubble Relay:       OK
    \\__/       ClusterMesh:        disabled

DaemonSet              cilium             Desired: 1, Ready: 1/1, Available: 1/1
Deployment             cilium-operator    Desired: 1, Ready: 1/1, Available: 1/1
Deployment             hubble-relay       Desired: 1, Ready: 1/1, Available: 1/1
Containers:            cilium             Running: 1
                       cilium-operator    Running: 1
                       hubble-relay       Running: 1
Cluster Pods:          18/18 managed by Cilium
Helm chart version:    1.10.3
Image versions         cilium             quay.io/cilium/cilium:v1.10.3: 1
                       cilium-operator    quay.io/cilium/operator-generic:v1.10.3: 1
                       hubble-relay       quay.io/cilium/hubble-relay:v1.10.3: 1
"""


def test_the_picture_is_the_articles():
    """Whole, in Cilium's columns, and without colours into a pipe."""
    assert outer_status.render(ARTICLE) == PICTURE


def test_colours_change_no_column():
    """On a terminal the same text is coloured."""
    import re

    coloured = outer_status.render(ARTICLE, colours=True)
    assert "\033[32mOK\033[0m" in coloured
    assert re.sub(r"\033\[\d+m", "", coloured) == PICTURE


def test_what_is_wrong_is_counted_and_listed():
    """Errors in red numbers beside the picture, each with its pod below."""
    states = (
        ComponentState(
            AGENT,
            Counts(2, 1, 1, 1),
            (
                PodState("cilium-a", "Running", ("i",)),
                PodState("cilium-b", "Running", ("i",), ("container cilium-agent is in CrashLoopBackOff",)),
            ),
        ),
        ComponentState(OPERATOR, Counts(1, 0, 0, 1), (PodState("operator-x", "Pending", ("o",)),)),
        *ARTICLE.components[2:],
    )
    errors, warnings = outer_status.judge(states)
    text = outer_status.render(replace(ARTICLE, components=states, errors=errors, warnings=warnings))
    lines = [line.split(maxsplit=3) for line in text.splitlines()]

    assert " /¯¯\\__/¯¯\\    Cilium:             2 errors\n" in text
    assert " \\__/¯¯\\__/    Operator:           1 errors, 1 warnings\n" in text
    assert ["Errors:", "cilium", "cilium", "1 pods of DaemonSet cilium are not ready"] in lines
    assert ["cilium", "cilium-b", "container cilium-agent is in CrashLoopBackOff"] in [
        line.split(maxsplit=2) for line in text.splitlines()
    ]
    assert ["Warnings:", "cilium-operator", "operator-x", "pod is pending"] in lines
    assert "Ready: 1/2" in text
    assert "Unavailable: 1/2" in text


def test_agent_and_operator_must_be_installed_and_others_need_not():
    """An empty cluster has two errors."""
    errors, warnings = outer_status.judge(map(ComponentState, COMPONENTS))
    assert [one.text for one in errors] == [
        "DaemonSet cilium not found",
        "Deployment cilium-operator not found",
    ]
    assert warnings == ()


def test_the_document_has_ciliums_words():
    """``-o json``."""
    found = outer_status.document(
        replace(ARTICLE, errors=(outer_status.Finding("cilium", "cilium-0", "sick"),))
    )
    assert found["pod_state"]["cilium"]["Desired"] == 1
    assert found["phase_count"]["hubble-relay"] == {"Running": 1}
    assert found["pods_count"] == {"All": 18, "ByCilium": 18}
    assert found["image_count"]["cilium"] == {"quay.io/cilium/cilium:v1.10.3": 1}
    assert found["errors"] == {"cilium": {"cilium-0": {"Errors": ["sick"]}}}
    assert json.loads(json.dumps(found)) == found


# -- what the API server says ---------------------------------------------------------------


def refusal(code):
    """An answer of the API server that is an error."""
    error = ApiError.__new__(ApiError)
    error.status = SimpleNamespace(code=code, message="no")
    return error


def pod(name, labels, *, namespace="kube-system", host=False, phase="Running", waiting=None):
    """A pod with one container."""
    state = ContainerState(waiting=ContainerStateWaiting(reason=waiting)) if waiting else ContainerState()
    status = ContainerStatus(image="i", imageID="", name="main", ready=True, restartCount=0, state=state)
    return Pod(
        metadata=ObjectMeta(name=name, namespace=namespace, labels=labels),
        spec=PodSpec(containers=[Container(name="main", image="img:1")], hostNetwork=host),
        status=PodStatus(phase=phase, containerStatuses=[status]),
    )


class FakeApi:
    """Objects by kind and name, as lightkube's client gives them."""

    def __init__(self):
        self.pods = [
            pod("cilium-a", {"k8s-app": "cilium"}, host=True),
            pod("cilium-operator-x", {"io.cilium/app": "operator"}, host=True, waiting="CrashLoopBackOff"),
            pod("web", {}, namespace="shop"),
            pod("db", {}, namespace="shop"),
            pod("job", {}, namespace="shop", phase="Succeeded"),
        ]
        release = {"chart": {"metadata": {"version": "1.18.4"}}}
        packed = base64.b64encode(base64.b64encode(gzip.compress(json.dumps(release).encode()))).decode()
        self.secrets = [
            Secret(metadata=ObjectMeta(name="v9", labels={"version": "9"}), data={"release": "?"}),
            Secret(metadata=ObjectMeta(name="v10", labels={"version": "10"}), data={"release": packed}),
        ]
        self.endpoints = [SimpleNamespace(metadata=ObjectMeta(name="web", namespace="shop"))]

    def get(self, kind, name, *, namespace):  # noqa: ARG002  there is one
        """The agent's DaemonSet and the operator's Deployment."""
        if (kind, name) == (DaemonSet, "cilium"):
            status = DaemonSetStatus(
                currentNumberScheduled=1,
                desiredNumberScheduled=1,
                numberMisscheduled=0,
                numberReady=1,
                numberAvailable=1,
            )
            return DaemonSet(spec=DaemonSetSpec(LabelSelector(), PodTemplateSpec()), status=status)
        if (kind, name) == (Deployment, "cilium-operator"):
            spec = DeploymentSpec(selector=LabelSelector(), template=PodTemplateSpec())
            return Deployment(spec=spec, status=DeploymentStatus(unavailableReplicas=1))
        raise refusal(404)

    def list(self, kind, *, namespace, labels=None):  # noqa: ARG002  there is one
        """Pods by label, secrets, endpoints."""
        if kind is Pod:
            wanted = (labels or {}).items()
            return [one for one in self.pods if wanted <= one.metadata.labels.items()]
        found = self.secrets if kind is Secret else self.endpoints
        if isinstance(found, ApiError):
            raise found
        return found


def test_a_cluster_is_gathered():
    """Counts, containers that crash, pods with an endpoint, the newest release."""
    found = outer_cluster.gather(FakeApi(), "kube-system")
    agent, operator, envoy, *_ = found.components

    assert agent.counts == Counts(1, 1, 1, 0)
    assert operator.counts == Counts(1, 0, 0, 1)
    assert envoy.counts is None
    assert agent.pods == (PodState("cilium-a", "Running", ("img:1",)),)
    assert (found.managed, found.pods) == (1, 2)
    assert found.chart == "1.18.4"
    assert [one.text for one in found.errors] == [
        "1 pods of Deployment cilium-operator are not ready",
        "container main is in CrashLoopBackOff",
    ]


def test_what_may_not_be_read_or_is_not_installed_is_left_out():
    """Secrets without the right to them, endpoints without their definition."""
    api = FakeApi()
    api.secrets, api.endpoints = refusal(403), refusal(404)
    found = outer_cluster.gather(api, "kube-system")
    assert (found.chart, found.managed) == ("", 0)
    api.endpoints = refusal(500)
    with pytest.raises(ApiError):
        outer_cluster.gather(api, "kube-system")


@pytest.mark.parametrize("data", [{}, {"release": "?"}, {"release": "YWJj"}])
def test_a_record_that_is_none_has_no_version(data):
    """Somebody else's secret with Helm's labels."""
    assert outer_cluster.chart_version(data) == ""


# -- the command ------------------------------------------------------------------------------


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A home with a kubeconfig, and no agent."""
    monkeypatch.delenv("CILIUM_SOCK", raising=False)
    config = tmp_path / "config"
    config.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
                "users": [{"name": "u", "user": {}}],
                "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "here",
            }
        )
    )
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/none:{config}")
    monkeypatch.setattr(outer, "DEFAULT_SOCKET", str(tmp_path / "cilium.sock"))
    return tmp_path


@pytest.mark.parametrize(
    ("program", "words", "outside"),
    [
        ("/usr/bin/cilium", ["status"], True),
        ("cilium-dbg", ["status"], False),
        ("cilium", ["policy", "validate", "x.yaml"], False),
        ("cilium", ["policy", "get"], True),
        ("cilium", ["status", "-H", "/run/x.sock"], False),
        ("cilium", ["--host=unix:///run/x.sock", "status"], False),
    ],
)
def test_the_cluster_is_meant_where_no_agent_is(home, program, words, outside):
    """By name, by a socket on the command line."""
    assert outer.is_outside(program, words) is outside


def test_an_agents_socket_comes_first(home, monkeypatch):
    """One that is there or named in the environment; and without a kubeconfig there is no cluster."""
    monkeypatch.setenv("CILIUM_SOCK", "/run/x.sock")
    assert not outer.is_outside("cilium", ["status"])
    monkeypatch.delenv("CILIUM_SOCK")
    (home / "cilium.sock").touch()
    assert not outer.is_outside("cilium", ["status"])
    (home / "cilium.sock").unlink()
    monkeypatch.setenv("KUBECONFIG", str(home / "none"))
    assert not outer.is_outside("cilium", ["status"])
    assert outer.is_outside("cilium", ["status", "--context", "x"])


def test_status_prints_and_ends_by_what_it_found(home, monkeypatch, capsys):
    """0 when all is well, 1 when not; the namespace arrives."""
    asked = []

    def gather(client, namespace):
        asked.append((client.namespace, namespace))
        return found

    monkeypatch.setattr(outer_cluster, "gather", gather)
    found = ARTICLE
    assert outer.run(["status", "-n", "cilium"]) == 0
    assert capsys.readouterr().out == PICTURE
    found = replace(ARTICLE, errors=(outer_status.Finding("cilium", "x", "sick"),))
    assert outer.run(["status", "-o", "json"]) == 1
    assert json.loads(capsys.readouterr().out)["errors"]
    assert asked == [("cilium", "cilium"), ("kube-system", "kube-system")]


def test_waiting_ends_when_all_is_well_or_time_is_up(monkeypatch):
    """Looked at again and again, not longer than told."""
    monkeypatch.setattr(outer, "POLL_SECONDS", 0.001)
    sick = replace(ARTICLE, errors=(outer_status.Finding("cilium", "x", "sick"),))
    answers = [sick, sick, ARTICLE]
    assert outer.settle(lambda: answers.pop(0), 5.0) is ARTICLE
    assert outer.settle(lambda: sick, 0.01) is sick
    assert outer.settle(lambda: sick, 0.0) is sick


def test_an_api_server_that_is_away_is_code_3(home):
    """With what went wrong."""
    with pytest.raises(CommandError, match="cannot reach the API server") as caught:
        outer.run(["status"])
    assert caught.value.code == 3


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["status", "--context", "gone"], "cannot be used"),
        (["status", "--kubeconfig", "/nonexistent"], "/nonexistent cannot be used"),
        (["endpoint", "list"], "'endpoint' is no command for a cluster"),
    ],
)
def test_misuse_is_code_2_with_a_hint(home, words, text):
    """What to do instead is a command to paste."""
    with pytest.raises(CommandError, match=text) as caught:
        outer.run(words)
    assert caught.value.code == 2
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("5m", 300.0), ("1m30s", 90.0), ("1h", 3600.0), ("2.5s", 2.5)]
)
def test_durations_are_read_as_gos(text, seconds):
    """And plain seconds."""
    assert outer.seconds(text) == seconds


@pytest.mark.parametrize("text", ["m", "soon", ""])
def test_a_duration_that_is_none_is_refused(home, text, capsys):
    """By the parser."""
    with pytest.raises(SystemExit) as end:
        outer.run(["status", "--wait-duration", text])
    assert end.value.code == 2


def test_version_needs_no_cluster(home, capsys):
    """Only this command's own."""
    assert outer.run(["version"]) == 0
    assert capsys.readouterr().out.startswith("Client: 1.18")
