# SPDX-License-Identifier: Apache-2.0
"""
A container runtime, as far as CNI goes: starts plugins with CNI_* variables and a configuration on stdin.

What it is told is judged by the specification: an error is JSON with a code and ends with another exit
code than 0, a success of DEL, CHECK, STATUS and GC prints nothing.
"""

import itertools
import json
import os
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ciliumd.cni import EXECUTABLE
from lab.naming import unique_name
from lab.node import Node
from lab.process import END_SECONDS, NSENTER, SETPRIV

SECONDS: Final = 60.0

Json = dict[str, Any]


class CniRefused(AssertionError):
    """The plugin answered with an error; *code* is the specification's."""

    def __init__(self, command: str, answer: Json) -> None:
        super().__init__(f"{command}: {answer}")
        self.code: int = answer["code"]
        self.message: str = answer["msg"]
        self.answer = answer


@dataclass(frozen=True)
class Sandbox:
    """What a runtime knows of a pod's sandbox."""

    container_id: str
    netns: str
    pod: str
    namespace: str = "default"
    ifname: str = "eth0"

    @property
    def arguments(self) -> str:
        """CNI_ARGS as containerd writes them."""
        return (
            f"IgnoreUnknown=1;K8S_POD_NAMESPACE={self.namespace};K8S_POD_NAME={self.pod};"
            f"K8S_POD_INFRA_CONTAINER_ID={self.container_id};K8S_POD_UID=0"
        )


class Runtime:
    """Runs one plugin on a node with a fixed configuration."""

    def __init__(
        self, netns: Path, config: Mapping[str, Any], *, executable: Path = EXECUTABLE, version: str = "1.1.0"
    ) -> None:
        self.netns = netns
        self.config = {"cniVersion": version, "name": "cilium", "type": executable.name, **config}
        self.executable = executable
        self.results: dict[Sandbox, Json] = {}

    def sandbox(self, pod: str, netns: Path | str, **more: str) -> Sandbox:
        """A new sandbox of a pod, with an id nobody had."""
        return Sandbox(f"{unique_name(pod)}-{next(_numbers)}", str(netns), pod, **more)

    def add(self, sandbox: Sandbox, **config: Any) -> Json:
        """ADD; the result, which is kept for CHECK and DEL."""
        self.results[sandbox] = result = self.call("ADD", sandbox, **config)
        return result

    def delete(self, sandbox: Sandbox, *, netns: bool = True, **config: Any) -> None:
        """DEL, with prevResult if there was an ADD."""
        known = self.results.pop(sandbox, None)
        previous = {} if known is None else {"prevResult": known}
        self.expect_nothing("DEL", sandbox, netns=netns, **previous, **config)

    def check(self, sandbox: Sandbox, **config: Any) -> None:
        """CHECK with the result of the ADD."""
        self.expect_nothing("CHECK", sandbox, **{"prevResult": self.results[sandbox], **config})

    def status(self) -> None:
        """STATUS."""
        self.expect_nothing("STATUS")

    def collect(self, valid: Collection[Sandbox]) -> None:
        """GC of all but these."""
        attachments = [{"containerID": one.container_id, "ifname": one.ifname} for one in valid]
        self.expect_nothing("GC", **{"cni.dev/valid-attachments": attachments})

    def expect_nothing(self, command: str, sandbox: Sandbox | None = None, **more: Any) -> None:
        """Run a command that has no result."""
        answer = self.call(command, sandbox, **more)
        assert answer == {}, f"{command} answered {answer}"

    def call(
        self, command: str, sandbox: Sandbox | None = None, *, netns: bool = True, **config: Any
    ) -> Json:
        """Run the plugin; what it printed.  Raises :class:`CniRefused`."""
        with self.launch(command, sandbox, netns=netns, **config) as process:
            return finished(process, command)

    def launch(
        self,
        command: str,
        sandbox: Sandbox | None = None,
        *,
        netns: bool = True,
        passed: tuple[int, ...] = (),
        **config: Any,
    ) -> subprocess.Popen[str]:
        """Start the plugin with its configuration written and descriptors *passed*, and wait for nothing."""
        environment = {"CNI_COMMAND": command, "CNI_PATH": str(self.executable.parent)}
        if sandbox is not None:
            environment |= {
                "CNI_CONTAINERID": sandbox.container_id,
                "CNI_IFNAME": sandbox.ifname,
                "CNI_ARGS": sandbox.arguments,
            }
            if netns:
                environment["CNI_NETNS"] = sandbox.netns
        process = subprocess.Popen(
            [SETPRIV, "--pdeathsig", "KILL", "--", NSENTER, f"--net={self.netns}", "--", self.executable],
            env={"PATH": os.environ["PATH"], **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=passed,
            text=True,
        )
        assert process.stdin is not None
        json.dump({**self.config, **config}, process.stdin)
        process.stdin.close()
        process.stdin = None
        return process


def runtime_of(node: Node, **options: Any) -> Runtime:
    """The runtime of a node whose agent has not been started yet."""
    socket, queue = node.directory / "cni.sock", node.directory / "deleteQueue"
    node.agent.options["cni-socket"] = str(socket)
    config: dict[str, Any] = {
        "cni-socket": str(socket),
        "delete-queue": str(queue),
        "log-file": f"{node.directory}/cni.log",
    }
    # As the agent writes it.
    if node.agent.options.get("enable-ipv6") == "true":
        config["enable-ipv6"] = True
    return Runtime(node.netns.path, config, **options)


def finished(process: "subprocess.Popen[str]", command: str) -> Json:
    """What a plugin printed when it has ended.  Raises :class:`CniRefused`."""
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(END_SECONDS)
        raise
    answer: Json = json.loads(output) if output.strip() else {}
    if process.returncode:
        assert isinstance(answer.get("code"), int), f"{command} ended with {process.returncode}: {output!r}"
        raise CniRefused(command, answer)
    assert "code" not in answer, f"{command} ended with 0 and an error: {output}"
    return answer


_numbers = itertools.count(1)
