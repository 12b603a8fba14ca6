# SPDX-License-Identifier: Apache-2.0
"""
``lxc_health``: the node's own endpoint, kept alive.

A process of its own makes the namespace (see ``responder``) and answers in it; the agent wires it like a
pod.  Where the process dies, namespace and device go with it, and both are made again.
"""

import array
import asyncio
import socket
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final, Protocol

import structlog

from ciliumd.health import responder
from ciliumd.model.endpoint import EndpointSpec
from ciliumd.model.net import Addr
from ciliumd.net.errors import NetError
from ciliumd.net.namespace import Sandbox

START_SECONDS: Final = 10.0
LOOK_SECONDS: Final = 5.0
FIRST_DELAY: Final = 0.1
MAX_DELAY: Final = 30.0
MAX_SHORT: Final = 16
_DESCRIPTORS: Final = 2

log = structlog.get_logger("health")


class EndpointOwner(Protocol):
    """Who makes endpoints (``daemon.endpoints``)."""

    async def add_health(self, sandbox: Sandbox) -> EndpointSpec:
        """
        Make the *sandbox*, which is closed in any case, the health endpoint instead of the one of before.

        It keeps its address where it can.  Raises :class:`Refused`.
        """

    def has(self, number: int) -> bool:
        """Whether endpoint *number* exists."""


class Refused(Exception):
    """The endpoint cannot be made; the text says why."""


class StartFailed(Exception):
    """The process did not come up; the text is what it said."""


class HealthProcess:
    """One process with one namespace."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self._process = process
        self._control = control

    @classmethod
    async def start(cls, port: int, procfs: Path, family: int = 4) -> tuple["HealthProcess", Sandbox]:
        """The process, listening, and its namespace.  Raises :class:`StartFailed`."""
        ours, theirs = socket.socketpair()
        with closing(theirs):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                responder.__file__,
                str(theirs.fileno()),
                str(port),
                str(procfs),
                str(family),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
        started = cls(process, ours)
        try:
            return started, await started._namespace()
        except BaseException:
            await started.end()
            raise

    async def _namespace(self) -> Sandbox:
        descriptors = await asyncio.to_thread(_receive, self._control)
        if descriptors is None:
            raise StartFailed(await self.ended())
        return Sandbox.received(f"/proc/{self._process.pid}/ns/net", *descriptors)

    async def ended(self) -> str:
        """What it said when it ended by itself."""
        _, said = await self._process.communicate()
        text = said.decode(errors="replace").strip()
        return text.splitlines()[-1] if text else f"ended with {self._process.returncode}"

    async def end(self) -> None:
        """End it: its control socket closes."""
        self._control.close()
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def wait(self, seconds: float) -> bool:
        """Whether it ends within *seconds*."""
        try:
            async with asyncio.timeout(seconds):
                await self._process.wait()
        except TimeoutError:
            return False
        return True


class HealthEndpoint:
    """Keeps the endpoint there; *changed* is called when its address, which is of *family*, has."""

    def __init__(
        self,
        owner: EndpointOwner,
        *,
        port: int,
        procfs: Path,
        changed: Callable[[], None],
        family: int = 4,
    ) -> None:
        self._owner = owner
        self._port = port
        self._procfs = procfs
        self._changed = changed
        self._family = family
        self.address: Addr | None = None
        self.problem = "is not made yet"
        """Why there is none; empty while there is."""

    async def run(self) -> None:
        """Make it, and again whenever it is lost, until cancelled."""
        short = 0
        while True:
            started = time.monotonic()
            try:
                await self._live()
            except (StartFailed, Refused, NetError, OSError) as error:
                self._is(None, str(error))
            log.warning("health.endpoint_lost", reason=self.problem)
            short = 0 if time.monotonic() - started > MAX_DELAY else min(short + 1, MAX_SHORT)
            await asyncio.sleep(min(MAX_DELAY, FIRST_DELAY * 2.0**short))

    async def _live(self) -> None:
        """One life: returns when it is over."""
        process, sandbox = await HealthProcess.start(self._port, self._procfs, self._family)
        try:
            endpoint = await self._owner.add_health(sandbox)
            self._is(next(iter(endpoint.addresses), None), "")
            while not await process.wait(LOOK_SECONDS):
                if not self._owner.has(endpoint.id):
                    self._is(None, f"endpoint {endpoint.id} was deleted")
                    return
            self._is(None, f"its process {await process.ended()}")
        finally:
            await process.end()

    def _is(self, address: Addr | None, problem: str) -> None:
        self.problem = problem
        if address != self.address:
            self.address = address
            self._changed()


def _receive(control: socket.socket) -> tuple[int, int] | None:
    """Descriptors of the namespace and of a route socket in it; None when the process ended instead."""
    control.settimeout(START_SECONDS)
    received = array.array("i")
    try:
        data, ancillary, _, _ = control.recvmsg(
            1, socket.CMSG_SPACE(_DESCRIPTORS * received.itemsize), socket.MSG_CMSG_CLOEXEC
        )
    except TimeoutError as error:
        raise StartFailed(f"did not come up within {START_SECONDS:g} s") from error
    if not data:
        return None
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            received.frombytes(content)
    namespace, route = received
    return namespace, route
