# SPDX-License-Identifier: Apache-2.0
"""
Follows a directory of manifests: ``*.yaml``, ``*.yml``, ``*.json``, not its subdirectories.

Polling, on purpose: names, times, sizes and inodes of a directory are compared four times a second, which
costs some 50 microseconds for a handful of files, works the same on bind mounts, overlays, NFS and the
symlink swaps of mounted ConfigMaps, and cannot lose an event.  inotify would need a binding that the
standard library does not have, sees nothing on several of these, and must be backed by a scan anyway.
:meth:`DirectorySource.rescan` is for who cannot wait.

Nobody is caught writing: a file is read when it has been quiet for a moment, read again if it changed
meanwhile, and a file that vanished is believed gone when it is still gone at the next look (editors
rename and create).  A file that cannot be read is tried again at every look; it may be the machine that
is short of something.  A directory that cannot be read deletes nothing, and a file that cannot be understood
when it is first read has the objects an earlier agent knew (see ``lastgood``).
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from ciliumd.resources import Parse, parse
from ciliumd.sources.catalog import Catalog
from ciliumd.sources.lastgood import Forgetful, Keeper, LastGood, Recall
from ciliumd.sources.manifests import (
    SUFFIXES,
    MalformedManifest,
    ManifestObject,
    ObjectKey,
    UnreadableManifest,
    read_manifest,
)
from ciliumd.tables import Problem, Tables

# A file that is written without a pause is read anyway after this many seconds.
PATIENCE = 2.0
_READS = 3

_Stamp = tuple[int, int, int, int]
_Content = tuple[ManifestObject, ...] | MalformedManifest

log = structlog.get_logger("directory")


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryStatus:
    """The source as status and metrics show it; the last four count since the start."""

    directory: str
    initialized: bool
    error: str | None
    files: int
    objects: int
    problems: int
    scans: int
    files_read: int
    files_malformed: int
    objects_invalid: int


@dataclass(frozen=True, slots=True)
class _Read:
    """A file's content, and what an earlier agent knew instead of what is wrong with it."""

    stamp: _Stamp
    content: _Content
    recalled: tuple[ManifestObject, ...]

    @property
    def unreadable(self) -> bool:
        """Whether the content is not known: it may be next time, without the file having changed."""
        return isinstance(self.content, UnreadableManifest)


@dataclass(slots=True)
class _Scan:
    """What one look at the directory found; made in a thread, applied on the loop."""

    present: set[str] = field(default_factory=set)
    read: dict[str, _Read] = field(default_factory=dict)
    unsettled: set[str] = field(default_factory=set)
    error: str | None = None


class DirectorySource:
    """
    Keeps *tables* equal to the objects in *directory*; *last_good* outlives the agent.

    *parse* reads objects.
    """

    def __init__(
        self,
        directory: Path,
        tables: Tables,
        *,
        interval: float = 0.25,
        settle: float = 0.05,
        clock: Callable[[], float] = time.time,
        last_good: LastGood | None = None,
        parse: Parse = parse,
    ) -> None:
        self._directory = directory
        self._parse = parse
        self._tables = tables
        self._catalog = Catalog(tables)
        self._keeper = Keeper(last_good or Forgetful())
        self._recall: Recall | None = None
        self._interval = interval
        self._settle = settle
        self._clock = clock
        self._known: dict[str, _Stamp] = {}
        self._unreadable: set[str] = set()
        self._waiting_since: dict[str, float] = {}
        self._vanished: set[str] = set()
        self._error: str | None = None
        self._initialized = False
        self._wake = asyncio.Event()
        self._scans = 0
        self._read = 0
        self._malformed = 0
        self._invalid = 0

    def rescan(self) -> None:
        """Look again at once.  The loop's thread only."""
        self._wake.set()

    def status(self) -> DirectoryStatus:
        """What the source has seen."""
        return DirectoryStatus(
            directory=str(self._directory),
            initialized=self._initialized,
            error=self._error,
            files=self._catalog.files,
            objects=self._catalog.objects,
            problems=self._catalog.problems,
            scans=self._scans,
            files_read=self._read,
            files_malformed=self._malformed,
            objects_invalid=self._invalid,
        )

    async def run(self) -> None:
        """Follow the directory until cancelled."""
        try:
            while True:
                self._wake.clear()
                settled = await self.scan()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._interval if settled else self._settle):
                        await self._wake.wait()
        finally:
            await self._keeper.finish()

    async def scan(self) -> bool:
        """Look once and write what changed; False if something is still being written."""
        if self._recall is None:
            self._recall = Recall(await self._keeper.load(), parse=self._parse)
        settled = self._take(await asyncio.to_thread(self._look, self._recall))
        error = self._keeper.error
        await self._keeper.write()
        if error != self._keeper.error:
            self._catalog.write(self._own_problems())
        return settled

    def _take(self, scan: _Scan) -> bool:
        """Write what one look found; False if something is still being written."""
        self._scans += 1
        if scan.error is not None:
            return self._report_error(scan.error)
        gone = self._known.keys() - scan.present
        removed = gone & self._vanished
        self._vanished = gone - removed
        settled = not scan.unsettled and not self._vanished
        ready = settled and not self._initialized
        if removed or scan.read or self._error is not None or ready:
            self._error = None
            self._apply(scan, removed)
            if ready:
                self._mark_initialized()
            if self._initialized:
                # Not before everything was read: what is missing until then is not gone.
                self._keeper.want(self._catalog.documents())
        return settled

    def _apply(self, scan: _Scan, removed: set[str]) -> None:
        """Write one look's findings into the tables."""
        for file in sorted(removed):
            del self._known[file]
            self._unreadable.discard(file)
            self._catalog.remove(file)
            log.info("directory.file_removed", file=file)
        for file, read in scan.read.items():
            content = read.content
            self._known[file] = read.stamp
            (self._unreadable.add if read.unreadable else self._unreadable.discard)(file)
            self._read += 1
            if isinstance(content, MalformedManifest):
                self._malformed += 1
                self._catalog.put_malformed(file, content, read.recalled)
                log.warning("directory.file_malformed", place=content.place, error=content.message)
            else:
                self._catalog.put(file, content, read.recalled)
                self._count_invalid(content)
        self._catalog.write(self._own_problems())

    def _count_invalid(self, content: tuple[ManifestObject, ...]) -> None:
        for one in content:
            if one.problem is not None:
                self._invalid += 1
                log.warning(
                    "directory.object_refused",
                    object="/".join(part for part in one.key if part),
                    place=one.place,
                    field=one.problem.field,
                    error=one.problem.message,
                )

    def _report_error(self, error: str) -> bool:
        """The directory could not be read: say so once, and keep everything as it is."""
        if error != self._error:
            self._error = error
            log.error("directory.unreadable", directory=str(self._directory), error=error)
            self._catalog.write(self._own_problems())
        return True

    def _own_problems(self) -> dict[ObjectKey, Problem]:
        """What is wrong with the directory and with the store, not with an object."""
        problems: dict[ObjectKey, Problem] = {}
        if self._error is not None:
            place = str(self._directory)
            message = f"cannot be read: {self._error}; objects read before stay"
            problems["Directory", "", place] = Problem("", message, place)
        if self._keeper.error is not None:
            place = self._keeper.name
            message = (
                f"cannot be written: {self._keeper.error}; "
                "files that are spoilt during a restart would lose their objects"
            )
            problems["State", "", place] = Problem("", message, place)
        return problems

    def _mark_initialized(self) -> None:
        """Everything that exists has been read: from now on absence means deletion."""
        self._initialized = True
        self._recall = Recall({})
        for table in self._tables.sources:
            table.mark_initialized()
        log.info("directory.initialized", files=self._catalog.files, objects=self._catalog.objects)

    # ---- in a thread: parsing a big file must not hold up the loop ---------------------------

    def _look(self, recall: Recall) -> _Scan:
        """Find the files, read and parse those that changed."""
        scan = _Scan()
        now = self._clock()
        try:
            found = _manifests(self._directory)
        except OSError as error:
            scan.error = error.strerror or str(error)
            return scan
        scan.present = set(found)
        for file, stamp in sorted(found.items()):
            told = self._known.get(file) == stamp
            if told and file not in self._unreadable:
                continue
            since = self._waiting_since.setdefault(file, now)
            busy = 0 <= now - stamp[0] / 1e9 < self._settle
            read = (
                None if busy and now - since < PATIENCE else self._read_quiet(self._directory / file, stamp)
            )
            if read is None:
                scan.unsettled.add(file)
            else:
                last_stamp, content = read
                if not (told and isinstance(content, UnreadableManifest)):
                    scan.read[file] = _Read(last_stamp, content, recall.of(file, content))
        self._waiting_since = {file: self._waiting_since[file] for file in scan.unsettled}
        return scan

    def _read_quiet(self, path: Path, stamp: _Stamp) -> tuple[_Stamp, _Content] | None:
        """The content of a file that did not change while it was read; None if it would not hold still."""
        for _ in range(_READS):
            try:
                data = path.read_bytes()
                after = _stamp(path.stat())
            except FileNotFoundError:
                return None
            except OSError as error:
                return stamp, UnreadableManifest(path.name, 1, f"cannot be read: {error.strerror}")
            if after == stamp:
                return stamp, _parse(path.name, data, self._parse)
            stamp = after
        return None


def _manifests(directory: Path) -> dict[str, _Stamp]:
    """Every manifest file of *directory* and its stamp; hidden files are somebody's work in progress."""
    found: dict[str, _Stamp] = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.name.endswith(SUFFIXES):
                continue
            try:
                if entry.is_file():
                    found[entry.name] = _stamp(entry.stat())
            except FileNotFoundError:
                continue  # gone since the directory was read, or a symlink to nowhere
    return found


def _stamp(status: os.stat_result) -> _Stamp:
    """What tells one state of a file from another; the change time tells also of new permissions."""
    return (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)


def _parse(name: str, data: bytes, parse: Parse) -> _Content:
    try:
        return read_manifest(name, data.decode("utf-8-sig"), parse=parse)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return MalformedManifest(name, line, "is not UTF-8 text")
    except MalformedManifest as error:
        return error
