# SPDX-License-Identifier: Apache-2.0
"""The chart as the real helm renders it."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "ciliumd"
KUBERNETES = "1.34.4"

Json = dict[str, Any]


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run helm: the one built for the cluster tests, or the machine's."""
    built = Path(os.environ.get("CILIUMD_K8S_BIN", ROOT / "build" / "out" / "k8s")) / "helm"
    program = str(built) if built.exists() else shutil.which("helm")
    assert program, f"no helm: build/dev cluster-tools builds {built}"
    home = tmp_path_factory.mktemp("helm")
    env = {name: str(home) for name in ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME", "HOME")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *words], capture_output=True, text=True, check=False, env=env)

    return run


class Rendered:
    """Objects of a rendered chart."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.objects: list[Json] = [document for document in yaml.safe_load_all(text) if document]

    def __iter__(self) -> Iterator[Json]:
        return iter(self.objects)

    def of(self, kind: str, name: str) -> Json:
        """The one object of this kind and name."""
        found = [one for one in self if (one["kind"], one["metadata"]["name"]) == (kind, name)]
        assert len(found) == 1, f"{len(found)} {kind} {name}"
        return found[0]

    def names(self) -> set[tuple[str, str]]:
        """Kind and name of each object."""
        return {(one["kind"], one["metadata"]["name"]) for one in self}

    @property
    def config(self) -> dict[str, str]:
        """Data of cilium-config."""
        data: dict[str, str] = self.of("ConfigMap", "cilium-config")["data"]
        return data

    @property
    def agent(self) -> Json:
        """The agent's pod specification."""
        spec: Json = self.of("DaemonSet", "cilium")["spec"]["template"]["spec"]
        return spec

    def container(self, name: str) -> Json:
        """A container or init container of the agent's pod."""
        every = {one["name"]: one for one in (*self.agent["initContainers"], *self.agent["containers"])}
        found: Json = every[name]
        return found


def settings(values: Json) -> list[str]:
    """``--set`` words."""
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="session")
def template(helm) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """``helm template`` with values, whatever comes of it."""

    def run(values: Json | None = None, *words: str, version: str = KUBERNETES):
        return helm(
            *("template", "cilium", str(CHART), "--namespace", "kube-system", "--kube-version", version),
            *(*settings(values or {}), *words),
        )

    return run


@pytest.fixture(scope="session")
def render(template) -> Callable[..., Rendered]:
    """The rendered objects; the values must be accepted."""

    def run(values: Json | None = None, *words: str, version: str = KUBERNETES) -> Rendered:
        done = template(values, *words, version=version)
        assert done.returncode == 0, done.stderr
        return Rendered(done.stdout)

    return run


@pytest.fixture(scope="session")
def default(render) -> Rendered:
    """The chart as it is."""
    return render()
