# SPDX-License-Identifier: Apache-2.0
"""
Last good documents: what a restarted agent needs of files it can no longer understand.

While an agent runs, a slip in a file takes nothing away (see ``catalog``).  Here that memory survives
the agent: every object is stored as the document it was when it was last valid, under the file it is
in.  A document is read again as if it stood in the file, so it is judged by the agent that reads it.

A store that is damaged, missing or full makes this memory shorter and harms nothing else.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import structlog

from ciliumd.resources import Parse, parse
from ciliumd.sources.manifests import MalformedManifest, ManifestObject, ObjectKey, read_document
from ciliumd.statefile import StateFileDamaged, read_rows, write_rows
from ciliumd.statefile.paced import Paced

Documents = Mapping[tuple[str, ObjectKey], str]
"""JSON text by file and object."""

log = structlog.get_logger("lastgood")


class LastGood(Protocol):
    """Where last good documents are kept.  One thread at a time; may block."""

    name: str

    def load(self) -> Documents:
        """What was saved last; nothing when that cannot be known."""

    def save(self, documents: Documents) -> None:
        """Replace what is kept.  Raises OSError."""


class Forgetful:
    """Keeps nothing: for sources whose objects need not outlive the agent."""

    name = "nothing"

    def load(self) -> Documents:
        """Nothing."""
        return {}

    def save(self, documents: Documents) -> None:
        """Nothing is kept."""


class LastGoodFile:
    """Last good documents in one state file."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    def load(self) -> Documents:
        """The documents of the file; none when there is no file that can be trusted."""
        try:
            return {_key_of(key): text for key, text in read_rows(self._path).items()}
        except FileNotFoundError:
            log.info("lastgood.file_missing", path=self.name)
        except (OSError, StateFileDamaged, ValueError, TypeError) as error:
            log.warning("lastgood.file_ignored", path=self.name, error=str(error))
        return {}

    def save(self, documents: Documents) -> None:
        """Replace the file."""
        rows = {json.dumps([file, *key]): text for (file, key), text in documents.items()}
        write_rows(self._path, rows)


def _key_of(text: str) -> tuple[str, ObjectKey]:
    file, kind, namespace, name = json.loads(text)
    return file, (kind, namespace, name)


class Recall:
    """What an earlier agent left, for files that are read for the first time."""

    def __init__(self, documents: Documents, *, parse: Parse = parse) -> None:
        self._parse = parse
        self._files: dict[str, dict[ObjectKey, str]] = {}
        for (file, key), text in documents.items():
            self._files.setdefault(file, {})[key] = text

    def of(
        self, file: str, content: tuple[ManifestObject, ...] | MalformedManifest
    ) -> tuple[ManifestObject, ...]:
        """The last good objects in the place of what is wrong with *content*, the content of *file*."""
        if isinstance(content, MalformedManifest):
            return self._read(file, self._files.get(file, {}).items())
        invalid = {one.key for one in content if one.rows is None}
        return self._read(file, ((key, text) for key in invalid if (text := self._text(file, key))))

    def _text(self, file: str, key: ObjectKey) -> str | None:
        """The document of an object: as it was in *file*, else in any other, for it may have moved."""
        for documents in (self._files.get(file, {}), *self._files.values()):
            if key in documents:
                return documents[key]
        return None

    def _read(self, file: str, documents: Iterable[tuple[ObjectKey, str]]) -> tuple[ManifestObject, ...]:
        objects = []
        for key, text in documents:
            one = read_document(text, place=file, parse=self._parse)
            if one.problem is None:
                objects.append(one)
            else:
                # It was valid to the agent that stored it, which was another version.
                log.warning(
                    "lastgood.document_refused",
                    object="/".join(part for part in key if part),
                    file=file,
                    field=one.problem.field,
                    error=one.problem.message,
                )
        return tuple(objects)


class Keeper:
    """
    Brings a store up to date: off the loop, only when something changed, and not all the time.

    The event loop's thread only.
    """

    def __init__(self, store: LastGood, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = store.name
        self._store = store
        self._paced = Paced(store.name, clock=clock)
        self._stored: Documents = {}
        self._wanted: Documents | None = None

    @property
    def error(self) -> str | None:
        """Why the last attempt to write failed."""
        return self._paced.error

    async def load(self) -> Documents:
        """What the store holds."""
        self._stored = await self._paced.call(self._store.load)
        return self._stored

    def want(self, documents: Documents) -> None:
        """The store is to hold *documents* from now on."""
        self._wanted = documents

    async def write(self) -> None:
        """Write what is wanted, unless a pause is due after the last write."""
        if not self._paced.pause:
            await self._write()

    async def finish(self) -> None:
        """Write what is wanted, now, and end the thread."""
        await self._write()
        self._paced.close()

    async def _write(self) -> None:
        documents = self._wanted
        if documents is None:
            return

        def replace() -> None:
            # In the thread: comparing and writing many documents takes its time.
            if documents != self._stored:
                self._store.save(documents)
                self._stored = documents

        if await self._paced.write(replace):
            self._wanted = None
