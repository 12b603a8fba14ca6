# SPDX-License-Identifier: Apache-2.0
"""
Last good policies, and groups they refer to: what a restarted agent needs of objects it can no longer read.

While an agent runs, an update that is not valid takes nothing away (see ``store``).  Here that memory
survives the agent: of every policy and group the document is stored as it was when it was last valid.  It
is read again as if the API server told it, so it is judged by the agent that reads it, and only for the
same object: one of the same name and another uid has no past.

Documents are in a file and not in memory: they are appended as they arrive, and the file of the agent before
is read only if an invalid policy is met before all policies are known.
"""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import structlog

from ciliumd.kubernetes.kinds import (
    CILIUM_CIDR_GROUP,
    CILIUM_CLUSTERWIDE_NETWORK_POLICY,
    CILIUM_NETWORK_POLICY,
    NETWORK_POLICY,
    Kind,
)
from ciliumd.model.objects import NamespacedName
from ciliumd.statefile.journal import Journal, Records
from ciliumd.statefile.paced import Paced

REMEMBERED: Final = frozenset(
    {NETWORK_POLICY, CILIUM_NETWORK_POLICY, CILIUM_CLUSTERWIDE_NETWORK_POLICY, CILIUM_CIDR_GROUP}
)
"""Kinds whose absence opens what was closed."""

# Seconds that gather what comes together.
_GATHER: Final = 0.5

log = structlog.get_logger("lastgood")


def essence(document: Mapping[str, Any]) -> str:
    """What decides about the rows of an object, as JSON: not its status, managers and annotations."""
    metadata = document["metadata"]
    # Policies select groups by labels; of others labels decide nothing, and would be written for nothing.
    names = {"name", "namespace", "uid", *(("labels",) if document["kind"] == CILIUM_CIDR_GROUP.kind else ())}
    kept = {name: metadata[name] for name in sorted(names & metadata.keys())}
    rest = {name: value for name, value in document.items() if name not in ("metadata", "status")}
    return json.dumps({**rest, "metadata": kept}, separators=(",", ":"))


class Recall:
    """What the agent before left in the file *path*.  Any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: Records | None = None
        self._over = False
        self._lock = threading.Lock()

    def document(self, kind: Kind, key: NamespacedName, uid: str) -> dict[str, Any] | None:
        """The last good document of an object; None if none is known."""
        with self._lock:
            text = "" if self._over else self._text(_key(kind, key))
        if not text:
            return None
        document: dict[str, Any] = json.loads(text)
        return document if uid and document["metadata"].get("uid") == uid else None

    def end(self) -> None:
        """Forget everything: whatever is told from now on is new."""
        with self._lock:
            self._over = True
            if self._records is not None:
                self._records.close()
                self._records = None

    def _text(self, key: str) -> str:
        try:
            if self._records is None:
                self._records = Records(self._path)
                if self._records.damaged:
                    log.warning("lastgood.damaged", path=str(self._path), lines=self._records.damaged)
            return self._records.text(key)
        except FileNotFoundError:
            log.info("lastgood.file_missing", path=str(self._path))
        except (OSError, ValueError) as error:
            log.warning("lastgood.file_ignored", path=str(self._path), error=str(error))
        self._over = True
        return ""


class LastGoodPolicies:
    """
    Keeps the file *path* equal to the policies in force.

    *failed* is called when :attr:`error` changed, which is why the file could not be written.  All but
    :attr:`recall` is for the event loop's thread.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = str(path)
        self.failed: Callable[[], None] = _nobody
        self.recall = Recall(path)
        self._journal = Journal(path)
        self._paced = Paced(self.name, clock=clock)
        self._pending: dict[str, str] = {}
        self._complete = False
        self._committed = False
        self._wake = asyncio.Event()

    @property
    def error(self) -> str | None:
        """Why the last attempt to write failed."""
        return self._paced.error

    def keep(self, kind: Kind, key: NamespacedName, document: str) -> None:
        """Remember what is in force of an object."""
        self._pending[_key(kind, key)] = document
        self._wake.set()

    def forget(self, kind: Kind, key: NamespacedName) -> None:
        """Nothing of an object is in force."""
        if kind in REMEMBERED:
            self.keep(kind, key, "")

    def complete(self) -> None:
        """Every policy and group there is was told: what the agent before knew is of no use any more."""
        self._complete = True
        self.recall.end()
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled, and then what is left."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                await asyncio.sleep(max(_GATHER, self._paced.pause))
                if not await self._write():
                    self._wake.set()
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await self._write()
            self._paced.close()
            self.recall.end()

    async def _write(self) -> bool:
        """Write what is pending; whether that worked."""
        texts, self._pending = self._pending, {}
        commit = self._complete and not self._committed
        if not texts and not commit:
            return True

        def write() -> None:
            self._journal.append(texts)
            if commit:
                self._journal.commit()

        before = self.error
        done = False
        try:
            done = await self._paced.write(write)
        finally:
            if done:
                self._committed |= commit
            else:
                self._pending = {**texts, **self._pending}
        if before != self.error:
            self.failed()
        return done


def _key(kind: Kind, key: NamespacedName) -> str:
    namespace, name = key
    return f"{kind.kind}/{namespace}/{name}"


def _nobody() -> None:
    """Nobody is told."""
