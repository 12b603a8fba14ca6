# SPDX-License-Identifier: Apache-2.0
"""
The known identities, and which of them each peer is: asked of those only that may match.

A memo, not state: what it answers depends only on the identities it holds, and is what
``rules.peer_matches`` says of each.
"""

from bisect import bisect_left, insort
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from ciliumd.desired.policy.rules import WORLD_NAMES, part_of, peer_matches, prefix_of
from ciliumd.model.identity import NumericIdentity
from ciliumd.model.labels import POD_NAMESPACE, Labels
from ciliumd.model.net import Prefix
from ciliumd.model.policy import NODE_NAMES, Peer, PeerCIDR, PeerEntity, PeerNodes, PeerPart, PeerSelector

Clue = Hashable
"""What peer and identity must have in common to match: (key, value) of a label, or a prefix's place."""

_ANYTHING: Clue = None
_IN_A_PART: Clue = "part"
_WORLD_CLUES: tuple[Clue, ...] = tuple((name, "") for name in sorted(WORLD_NAMES))
_NODE_CLUES: tuple[Clue, ...] = tuple((name, "") for name in sorted(NODE_NAMES))

_Place = tuple[int, int, int, NumericIdentity]  # IP version, first address, length, whose


class Selected(NamedTuple):
    """What a peer of rules in force comes to: the origins of those rules, and the identities it is."""

    rules: frozenset[str]
    identities: frozenset[NumericIdentity]


class SelectorCache:
    """Identities and what matches them; kept right by :meth:`add` and :meth:`remove`."""

    def __init__(self, identities: Mapping[NumericIdentity, Labels] | None = None) -> None:
        self._labels: dict[NumericIdentity, Labels] = {}
        self._holders: dict[Clue, set[NumericIdentity]] = {}
        self._places: list[_Place] = []  # sorted, so that what lies inside a prefix lies side by side
        self._matching: dict[Peer, set[NumericIdentity]] = {}
        self._interested: dict[Clue, set[Peer]] = {}
        for identity, labels in (identities or {}).items():
            self.add(identity, labels)

    def __contains__(self, identity: NumericIdentity) -> bool:
        return identity in self._labels

    def add(self, identity: NumericIdentity, labels: Labels) -> None:
        """Learn *identity*, or that it now stands for other labels."""
        if self._labels.get(identity) == labels:
            return
        self.remove(identity)
        self._labels[identity] = labels
        for clue in _held(labels):
            self._holders.setdefault(clue, set()).add(identity)
        prefix = prefix_of(labels)
        if prefix is not None:
            insort(self._places, _place(prefix, identity))
        for peer in self._who_may_match(labels):
            if peer_matches(peer, labels):
                self._matching[peer].add(identity)

    def remove(self, identity: NumericIdentity) -> None:
        """Forget *identity*; not knowing it is not an error."""
        labels = self._labels.pop(identity, None)
        if labels is None:
            return
        for clue in _held(labels):
            holders = self._holders[clue]
            holders.discard(identity)
            if not holders:
                del self._holders[clue]
        prefix = prefix_of(labels)
        if prefix is not None:
            del self._places[bisect_left(self._places, _place(prefix, identity))]
        for peer in self._who_may_match(labels):
            self._matching[peer].discard(identity)

    def matching(self, peer: Peer) -> AbstractSet[NumericIdentity]:
        """Return the identities *peer* is: a view that stays right for as long as the peer is kept."""
        found = self._matching.get(peer)
        if found is None:
            candidates = self._candidates(peer)
            found = {identity for identity in candidates if peer_matches(peer, self._labels[identity])}
            self._matching[peer] = found
            for clue in _clues(peer):
                self._interested.setdefault(clue, set()).add(peer)
        return found

    def forget(self, peers: Iterable[Peer]) -> None:
        """Drop what is remembered about *peers*; never having been asked about one is not an error."""
        for peer in peers:
            if self._matching.pop(peer, None) is None:
                continue
            for clue in _clues(peer):
                interested = self._interested[clue]
                interested.discard(peer)
                if not interested:
                    del self._interested[clue]

    def _who_may_match(self, labels: Labels) -> set[Peer]:
        if not self._interested:
            return set()
        clues = _held(labels) | {_ANYTHING}
        prefix = prefix_of(labels)
        if prefix is not None:
            clues.update(_around(prefix))
        return set().union(*(self._interested[clue] for clue in clues & self._interested.keys()))

    def _candidates(self, peer: Peer) -> Collection[NumericIdentity]:
        match peer:
            case PeerCIDR(prefix) if prefix.prefixlen:
                return self._inside(prefix)
            case PeerSelector(selector) | PeerNodes(selector) if selector.match_labels:
                wanted = [(key, value) for _, key, value in selector.match_labels]
                return min((self._holders.get(pair, set()) for pair in wanted), key=len)
        clues = _clues(peer)
        if _ANYTHING in clues:
            return self._labels
        return set().union(*(self._holders.get(clue, set()) for clue in clues))

    def _inside(self, outer: Prefix) -> list[NumericIdentity]:
        first = bisect_left(self._places, _place(outer, 0))
        beyond = (outer.version, int(outer.broadcast_address) + 1, 0, 0)
        return [place[-1] for place in self._places[first : bisect_left(self._places, beyond)]]


def _held(labels: Labels) -> set[Clue]:
    """Clues that an identity with *labels* has, but for those of the place of a prefix."""
    clues: set[Clue] = {(label.key, label.value) for label in labels}
    if part_of(labels) is not None:
        clues.add(_IN_A_PART)
    return clues


def _clues(peer: Peer) -> tuple[Clue, ...]:
    """Clues of which an identity that is *peer* has at least one."""
    match peer:
        case PeerCIDR(prefix):
            return (_place(prefix, 0),) if prefix.prefixlen else _WORLD_CLUES
        case PeerSelector(selector) | PeerNodes(selector) if selector.match_labels:
            # One is enough; a namespace tells less apart than most labels.
            _, key, value = min(selector.match_labels, key=lambda term: (term[1] == POD_NAMESPACE, term))
            return ((key, value),)
        case PeerNodes():
            return _NODE_CLUES
        case PeerPart():
            return (_IN_A_PART,)
        case PeerEntity(name):
            return _clues_of_entity(name)
    return (_ANYTHING,)


def _clues_of_entity(name: str) -> tuple[Clue, ...]:
    match name:
        case "none":
            return ()
        case "all" | "cluster":
            return (_ANYTHING,)
        case "world" | "world-ipv4" | "world-ipv6":
            return _WORLD_CLUES
        case _:
            return ((name, ""),)


def _place(prefix: Prefix, identity: NumericIdentity) -> _Place:
    return (prefix.version, int(prefix.network_address), prefix.prefixlen, identity)


def _around(prefix: Prefix) -> Iterator[Clue]:
    """The places of every prefix that holds *prefix*, itself included."""
    address = int(prefix.network_address)
    for length in range(prefix.prefixlen, 0, -1):
        shift = prefix.max_prefixlen - length
        yield (prefix.version, address >> shift << shift, length, 0)
