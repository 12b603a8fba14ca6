# SPDX-License-Identifier: Apache-2.0
"""
Somebody inside a namespace: a child process that runs the verbs of ``lab.child`` there.

``actor.call("tcp_connect", address=..., port=...)`` waits for the answer, ``actor.start(...)`` gives
a future.  The process lives in the namespace and, if told so, in a control group, for its sockets
to be translated there.
"""

import itertools
import json
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

from lab.process import Process
from lab.waiting import PATIENCE

CALL_SECONDS = 30.0


class VerbFailed(AssertionError):
    """A verb raised; the text is its traceback."""


class Actor:
    """A child process in a namespace.  A context manager that ends it."""

    def __init__(self, netns: Path, *, cgroup: Path | None = None, who: str = "") -> None:
        self.who = who or netns.name
        # -S: the standard library is enough, and starts in 20 ms.
        self._process = Process(
            [sys.executable, "-S", "-m", "lab.child"],
            netns=netns,
            cgroup=cgroup,
            output=subprocess.PIPE,
            stdin=subprocess.PIPE,
        )
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Future[Any]] = {0: Future()}
        self._writing = threading.Lock()
        ready = self._waiting[0]
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        ready.result(CALL_SECONDS * PATIENCE)

    def _read(self) -> None:
        stdout = self._process.popen.stdout
        assert stdout is not None
        noise = b""
        for line in stdout:
            try:
                reply = json.loads(line)
            except json.JSONDecodeError:
                noise += line
                continue
            future = self._waiting.pop(reply["id"])
            if "error" in reply:
                future.set_exception(VerbFailed(f"{self.who}: {reply['error']}"))
            else:
                future.set_result(reply.get("result"))
        for future in self._waiting.values():
            future.set_exception(VerbFailed(f"{self.who} ended: {noise.decode()}"))

    def start(self, verb: str, **arguments: Any) -> "Future[Any]":
        """Run a verb; its answer comes later."""
        stdin = self._process.popen.stdin
        assert stdin is not None
        future: Future[Any] = Future()
        with self._writing:
            number = next(self._numbers)
            self._waiting[number] = future
            request = {"id": number, "verb": verb, "arguments": arguments}
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        return future

    def call(self, verb: str, *, wait: float = CALL_SECONDS, **arguments: Any) -> Any:
        """Run a verb and wait for its answer."""
        return self.start(verb, **arguments).result(wait * PATIENCE)

    def end(self) -> None:
        """End the process; nothing happens when it has ended."""
        self._process.end()
        self._reader.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
