# SPDX-License-Identifier: Apache-2.0
"""
What the operator knows of the cluster: the last seen version of every object it follows.

Fed from lists and watches and from the answers to its own writes; an older version never replaces a
newer one, whatever way it comes.  Belongs to the main loop.
"""

from collections.abc import Callable, Collection, Mapping

from ciliumd.kubernetes.client import Json
from ciliumd.kubernetes.kinds import Kind
from ciliumd.operator.objects import Key, key_of

Changed = Callable[[Key], None]


class Store:
    """Objects by kind and key."""

    def __init__(self) -> None:
        self._rows: dict[Kind, dict[Key, Json]] = {}
        self._followers: dict[Kind, list[Changed]] = {}

    def follow(self, kind: Kind, changed: Changed) -> None:
        """Call *changed* with the key of every object of this kind that came, changed or went."""
        self._followers.setdefault(kind, []).append(changed)

    def rows(self, kind: Kind) -> Mapping[Key, Json]:
        """Every object of a kind."""
        return self._rows.get(kind, {})

    def get(self, kind: Kind, key: Key) -> Json | None:
        """One object."""
        return self._rows.get(kind, {}).get(key)

    def put(self, kind: Kind, document: Json) -> None:
        """A version of an object."""
        rows = self._rows.setdefault(kind, {})
        key = key_of(document)
        if (known := rows.get(key)) is not None and _version(document) <= _version(known):
            return
        rows[key] = document
        self._tell(kind, key)

    def drop(self, kind: Kind, document: Json) -> None:
        """The object is gone; one of the same name that came after it stays."""
        key = key_of(document)
        known = self.get(kind, key)
        if known is not None and known["metadata"]["uid"] == document["metadata"]["uid"]:
            self.forget(kind, key)

    def sweep(self, kind: Kind, before: Mapping[Key, Json], present: Collection[Key]) -> list[Key]:
        """
        Drop what was known *before* a list was asked for and is not *present* in its answer.

        A watch that had to begin anew says nothing of what was deleted meanwhile.  What came or changed
        since is newer than the list and stays.
        """
        rows = self._rows.get(kind, {})
        gone = [key for key, row in before.items() if key not in present and rows.get(key) is row]
        for key in gone:
            self.forget(kind, key)
        return gone

    def forget(self, kind: Kind, key: Key) -> None:
        """Drop an object."""
        if self._rows.get(kind, {}).pop(key, None) is not None:
            self._tell(kind, key)

    def _tell(self, kind: Kind, key: Key) -> None:
        for changed in self._followers.get(kind, ()):
            changed(key)


def _version(document: Json) -> int:
    """Versions are counted by etcd; the API server's own caches compare them as numbers too."""
    return int(document["metadata"]["resourceVersion"])
