# SPDX-License-Identifier: Apache-2.0
"""kubectl as the tests call it: words in, text or decoded objects out."""

import json
import os
import shlex
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from lab.process import CommandFailed, Process, run
from lab.waiting import NotInTime, eventually

SECONDS: Final = 60.0
READY_SECONDS: Final = 90.0

Object = dict[str, Any]


class Kubectl:
    """The admin's kubectl of one cluster."""

    def __init__(self, program: Path, kubeconfig: Path) -> None:
        self.program = program
        self.kubeconfig = kubeconfig

    @property
    def env(self) -> Mapping[str, str]:
        """What a program needs to find the cluster."""
        return {"KUBECONFIG": str(self.kubeconfig)}

    def run(
        self, *words: str, check: bool = True, stdin: str | None = None, seconds: float = SECONDS
    ) -> "subprocess.CompletedProcess[str]":
        """Run ``kubectl WORDS`` to its end.  Raises ``CommandFailed`` unless *check* is off."""
        return run([self.program, *words], env=self.env, check=check, stdin=stdin, seconds=seconds)

    def __call__(self, *words: str, stdin: str | None = None, seconds: float = SECONDS) -> str:
        """Output of ``kubectl WORDS``, which must succeed."""
        return self.run(*words, stdin=stdin, seconds=seconds).stdout

    def process(self, *words: str, **options: Any) -> Process:
        """Start ``kubectl WORDS``; the caller ends it."""
        return Process([self.program, *words], env=self.env, **options)

    # -- objects -------------------------------------------------------------------------------

    def get(self, kind: str, name: str, namespace: str = "default") -> Object:
        """One object."""
        return dict(json.loads(self("get", kind, name, "-n", namespace, "-o", "json")))

    def list(self, kind: str, *, namespace: str = "", selector: str = "") -> list[Object]:
        """Objects of a kind, of all namespaces unless one is named."""
        words = ["-n", namespace] if namespace else ["-A"]
        words += ["-l", selector] if selector else []
        return list(json.loads(self("get", kind, *words, "-o", "json"))["items"])

    def exists(self, kind: str, name: str, namespace: str = "default") -> bool:
        """Whether there is such an object."""
        return bool(self("get", kind, name, "-n", namespace, "--ignore-not-found", "-o", "name"))

    def apply(self, *what: Object | Path) -> None:
        """Apply objects, files or directories of manifests."""
        objects = [one for one in what if not isinstance(one, Path)]
        if objects:
            self("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
        for path in what:
            if isinstance(path, Path):
                self("apply", "-f", os.fspath(path))

    def delete(self, kind: str, *names: str, namespace: str = "default", wait: bool = True) -> None:
        """Delete objects that may be gone already."""
        self("delete", kind, *names, "-n", namespace, "--ignore-not-found", f"--wait={str(wait).lower()}")

    # -- waiting -------------------------------------------------------------------------------

    def rollout(self, what: str, namespace: str = "default", *, seconds: float = READY_SECONDS) -> None:
        """Wait until ``deploy/x``, ``ds/x`` ... has its pods; says what holds it up when it has not."""
        words = ["rollout", "status", what, "-n", namespace, f"--timeout={seconds:.0f}s"]
        done = self.run(*words, check=False, seconds=seconds + 10)
        if done.returncode:
            raise NotInTime(f"{what} in {namespace}: {done.stdout}{done.stderr}\n{self.story(namespace)}")

    def wait(self, *words: str, namespace: str = "default", seconds: float = READY_SECONDS) -> None:
        """``kubectl wait WORDS``; the story of the namespace is told when it is in vain."""
        done = self.run(
            "wait", *words, "-n", namespace, f"--timeout={seconds:.0f}s", check=False, seconds=seconds + 10
        )
        if done.returncode:
            raise NotInTime(f"{shlex.join(words)}: {done.stdout}{done.stderr}\n{self.story(namespace)}")

    def until(self, condition: Callable[[], object], what: str, *, seconds: float = READY_SECONDS) -> None:
        """Poll a condition whose commands may fail as long as the cluster is not there yet."""

        def holds() -> object:
            try:
                return condition()
            except CommandFailed:
                return False

        eventually(holds, what, seconds=seconds, every=0.2)

    def story(self, namespace: str) -> str:
        """Pods and last events of a namespace, for whoever has to find out."""
        pods = self.run("get", "pods", "-n", namespace, "-o", "wide", check=False).stdout
        events = self.run("get", "events", "-n", namespace, "--sort-by=.lastTimestamp", check=False).stdout
        return "\n".join([pods, *events.splitlines()[-15:]])

    # -- in pods -------------------------------------------------------------------------------

    def exec(
        self,
        pod: str,
        *command: str,
        namespace: str = "default",
        container: str = "",
        check: bool = True,
        seconds: float = SECONDS,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command in a pod."""
        words = ["exec", pod, "-n", namespace, *(["-c", container] if container else []), "--", *command]
        return self.run(*words, check=check, seconds=seconds)

    def logs(self, pod: str, namespace: str = "default", *words: str) -> str:
        """What a pod has written."""
        return self("logs", pod, "-n", namespace, *words)
