# SPDX-License-Identifier: Apache-2.0
"""
The agent's end of CNI: takes requests from the executable, has them done, answers in CNI's JSON.

One request per connection.  What a client sends is bounded in size and time; one that misbehaves is
hung up on, and harms nobody else.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

import structlog

from ciliumd.cni import wire
from ciliumd.cni.errors import CniError, Code
from ciliumd.cni.queue import DeleteQueue
from ciliumd.cni.request import Attachment, Command, PodName, Request
from ciliumd.cni.result import ERROR_VERSION, Attached, Json, differences, encoded, failure, success
from ciliumd.net.errors import NamespaceGone
from ciliumd.net.namespace import Sandbox

REQUEST_SECONDS = 5.0
"""How long a client may take to state its request."""

POD_SECONDS = 15.0
"""How long an ADD waits for its pod to be known; the runtime asks again after that."""

CLIENTS_MAX = 512
BACKLOG = 512

log = structlog.get_logger("cni")


class Endpoints(Protocol):
    """What is done with pods.  All raise CniError; a *sandbox* that is passed is closed in any case."""

    async def attach(self, attachment: Attachment, pod: PodName, sandbox: Sandbox) -> Attached:
        """Make the sandbox the pod; once more for the same attachment answers the same."""

    async def detach(self, attachment: Attachment) -> None:
        """Take it away; nothing happens when it is gone."""

    def attached(self, attachment: Attachment) -> Attached | None:
        """What was made, from memory."""

    async def faults(self, attachment: Attachment, sandbox: Sandbox) -> list[str]:
        """What of it is not as it was made, as the kernel says."""

    async def keep_only(self, valid: frozenset[Attachment]) -> None:
        """Take away what runtimes made and do not know any more."""


Observe = Callable[[str, int, float], None]
"""Told of each request: command, code of the answer (0: none), seconds."""


class CniServer:
    """Listens on a unix socket of root's; :meth:`start` before the first request can come."""

    def __init__(
        self,
        path: Path,
        endpoints: Endpoints,
        *,
        ready: Callable[[], str],
        wait_for_pod: Callable[[str, str], Awaitable[None]],
        queue_dir: Path,
        observe: Observe,
    ) -> None:
        """
        *ready* answers why no pod can be made, empty when one can.

        *wait_for_pod* (namespace, name) returns when the node knows the pod and its labels.
        """
        self._path = path
        self._endpoints = endpoints
        self._ready = ready
        self._wait_for_pod = wait_for_pod
        self._queue = DeleteQueue(queue_dir)
        self._observe = observe
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def start(self) -> None:
        """Delete what was queued, then listen."""
        await self.replay_queue()
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        before = os.umask(0o177)
        try:
            self._listener.bind(str(self._path))
        finally:
            os.umask(before)
        self._listener.listen(BACKLOG)
        self._accepting = asyncio.create_task(self._accept(self._listener))

    async def stop(self) -> None:
        """Hang up; changes under way run to their end without whoever asked for them."""
        tasks = [*self._clients, *([self._accepting] if self._accepting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
            self._path.unlink(missing_ok=True)

    async def replay_queue(self) -> None:
        """Delete what was asked for while no agent was there; what fails stays for the next time."""
        for attachment in self._queue.entries():
            try:
                async with self._turn(attachment.container_id):
                    await self._endpoints.detach(attachment)
            except CniError as error:
                log.warning("cni.queued_delete_failed", container=attachment.container_id, error=str(error))
                continue
            self._queue.done(attachment)
            log.info("cni.queued_delete_done", container=attachment.container_id)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while len(self._clients) >= CLIENTS_MAX:
                await asyncio.wait(self._clients, return_when=asyncio.FIRST_COMPLETED)
            try:
                peer, _ = await loop.sock_accept(listener)
            except OSError as error:
                # Out of descriptors, most likely: those who have some give them back.
                log.warning("cni.accept_failed", error=str(error))
                await asyncio.sleep(1.0)
                continue
            task = loop.create_task(self._serve(peer))
            self._clients.add(task)
            task.add_done_callback(self._clients.discard)

    async def _serve(self, peer: socket.socket) -> None:
        began = time.monotonic()
        with peer:
            peer.setblocking(False)
            try:
                async with asyncio.timeout(REQUEST_SECONDS):
                    data, descriptors = await wire.receive(peer)
            except (wire.BadFrame, OSError) as error:  # TimeoutError is an OSError
                log.warning("cni.bad_client", error=str(error) or type(error).__name__)
                return
            command, code, answer = await self._answer(data, descriptors)
            self._observe(command, code, time.monotonic() - began)
            # Whoever asked may have been killed meanwhile.
            with contextlib.suppress(OSError):
                await wire.send(peer, code, encoded(answer))

    async def _answer(self, data: bytes, descriptors: list[int]) -> tuple[str, int, Json | None]:
        """Command, code and what to print.  The descriptors are closed or given away."""
        command, version = "", ERROR_VERSION
        try:
            request = Request.decode(data)
            command, version = request.command.value, request.config.cni_version
            return command, 0, await self._do(request, descriptors)
        except CniError as error:
            log.warning("cni.refused", command=command, code=int(error.code), error=str(error))
            return command, int(error.code), failure(error, version)
        except Exception as error:  # task's edge: a bug in one request must not end the server
            log.exception("cni.request_failed", command=command)
            told = CniError(Code.INTERNAL, f"internal error ({type(error).__name__}), see the agent's log")
            return command, int(told.code), failure(told, version)
        finally:
            wire.close_all(descriptors)

    async def _do(self, request: Request, descriptors: list[int]) -> Json | None:
        match request.command:
            case Command.ADD:
                async with self._turn(request.container_id):
                    return await self._add(request, descriptors)
            case Command.DEL:
                # Behind an ADD that its runtime gave up and we did not.
                async with self._turn(request.container_id):
                    await self._endpoints.detach(request.attachment)
            case Command.CHECK:
                await self._check(request, descriptors)
            case Command.STATUS:
                if reason := self._ready():
                    # 50, not 51: the kernel serves the pods that exist without us.
                    raise CniError(Code.NOT_AVAILABLE, f"no pod can be made: {reason}")
            case Command.GC:
                await self._endpoints.keep_only(request.valid_attachments)
        return None

    async def _add(self, request: Request, descriptors: list[int]) -> Json:
        pod = request.pod
        try:
            async with asyncio.timeout(POD_SECONDS):
                await self._wait_for_pod(*pod)
        except TimeoutError:
            raise CniError(
                Code.TRY_AGAIN_LATER, f"pod {pod} is not known to the agent after {POD_SECONDS:g} s"
            ) from None
        made = await self._endpoints.attach(request.attachment, pod, _sandbox(request, descriptors))
        return success(made, request.config.cni_version)

    async def _check(self, request: Request, descriptors: list[int]) -> None:
        previous = request.previous
        made = self._endpoints.attached(request.attachment)
        if made is None:
            raise CniError(
                Code.CHECK_FAILED,
                f"no pod has container {request.container_id} and device {request.ifname}",
            )
        found = differences(previous, made)
        found += await self._endpoints.faults(request.attachment, _sandbox(request, descriptors))
        if found:
            raise CniError(Code.CHECK_FAILED, "; ".join(found))

    def _turn(self, container_id: str) -> asyncio.Lock:
        """Held by whoever changes this container; it is forgotten with the last of them."""
        return self._turns.setdefault(container_id, asyncio.Lock())


def _sandbox(request: Request, descriptors: list[int]) -> Sandbox:
    """The namespace that came with the request; it takes its descriptors over."""
    if len(descriptors) != 2:
        raise CniError(Code.INVALID_ENVIRONMENT, f"{request.command} came without its namespace")
    netns, netlink = descriptors
    descriptors.clear()
    try:
        return Sandbox.received(request.netns, netns, netlink)
    except (NamespaceGone, OSError) as error:
        raise CniError(Code.INVALID_ENVIRONMENT, str(error)) from error
