# SPDX-License-Identifier: Apache-2.0
"""
Blocks of the cluster's pool for the nodes' pod CIDRs (IPAM mode ``cluster-pool``).

Pure: who has which block is read from the CiliumNodes each time, so a restarted operator decides as if
it had never been away.  A block that a node has stays its own whatever the pool says now: pods use it.
"""

from bisect import bisect_right, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ciliumd.model.net import Prefix, holds


class PoolError(Exception):
    """A node gets no block; the text says why and what to do."""


class Exhausted(PoolError):
    """No block is left."""


class Conflict(PoolError):
    """A block that overlaps what somebody else has."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of blocks: handed out, free, and refused because something else has their addresses."""

    used: int
    free: int
    refused: int


class Claims:
    """Disjoint prefixes and who has them; a thousand nodes are searched in a few steps."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int, Prefix, str]] = []

    def __iter__(self) -> Iterator[tuple[Prefix, str]]:
        return ((prefix, owner) for *_, prefix, owner in self._rows)

    def find(self, prefix: Prefix) -> tuple[Prefix, str] | None:
        """A claim that overlaps *prefix*, and whose it is."""
        version, first, last = _interval(prefix)
        at = bisect_right(self._rows, (version, first), key=lambda row: row[:2])
        for row in self._rows[max(at - 1, 0) : at + 1]:
            if row[0] == version and row[1] <= last and row[2] >= first:
                return row[3], row[4]
        return None

    def add(self, prefix: Prefix, owner: str) -> None:
        """Claim *prefix*, which must overlap no other claim."""
        insort(self._rows, (*_interval(prefix), prefix, owner), key=lambda row: row[:2])


class ClusterPool:
    """
    The pool: *cidrs* cut into blocks of prefix length *mask_size*.

    *reserved* are prefixes that no block may touch, each with what it is ("InternalIP of node a").
    *after* is the block given last: the search goes on behind it, so that a block that was freed rests
    as long as there are others.
    """

    def __init__(
        self,
        cidrs: Sequence[Prefix],
        mask_size: int,
        reserved: Mapping[Prefix, str] | None = None,
        after: Prefix | None = None,
    ) -> None:
        for cidr in cidrs:
            if not cidr.prefixlen <= mask_size <= cidr.max_prefixlen:
                raise PoolError(f"blocks of /{mask_size} do not fit into {cidr}")
        self.cidrs = tuple(cidrs)
        self.mask_size = mask_size
        self.after = after
        self._claims = Claims()
        self._reserved = Claims()
        # Wide ones first: an address inside a range that is reserved already needs no row of its own.
        for prefix in sorted(reserved or {}, key=lambda one: one.prefixlen):
            if self._reserved.find(prefix) is None:
                self._reserved.add(prefix, (reserved or {})[prefix])

    @property
    def usage(self) -> Usage:
        """How full the pool is."""
        total = sum(1 << (self.mask_size - cidr.prefixlen) for cidr in self.cidrs)
        used = {block for prefix, _ in self._claims for block in self._touched(prefix)}
        refused = {block for prefix, _ in self._reserved for block in self._touched(prefix)} - used
        return Usage(len(used), total - len(used) - len(refused), len(refused))

    def take(self, node: str, block: Prefix) -> None:
        """
        Note that *node* has *block*.

        Raises :class:`Conflict`, and notes nothing, if another node has part of it.
        """
        claim = self._claims.find(block)
        if claim is None:
            self._claims.add(block, node)
        elif claim != (block, node):
            raise Conflict(f"{block} overlaps {claim[0]}, a pod CIDR of node {claim[1]}")

    def objection(self, block: Prefix) -> str | None:
        """What *block* touches that is reserved, if anything."""
        claim = self._reserved.find(block)
        return f"{block} overlaps {claim[0]}, {claim[1]}" if claim else None

    def allocate(self, node: str) -> Prefix:
        """A free block for *node*.  Raises :class:`Exhausted`."""
        for block in self._candidates():
            if self._claims.find(block) is None and self._reserved.find(block) is None:
                self._claims.add(block, node)
                self.after = block
                return block
        raise Exhausted(self._exhausted())

    def _exhausted(self) -> str:
        usage = self.usage
        pool = ", ".join(map(str, self.cidrs)) or "an empty pool"
        text = f"no free /{self.mask_size} in {pool}: {usage.used} used, {usage.free} free"
        objections = (self.objection(cidr) for cidr in self.cidrs)
        if usage.refused and (objection := next(filter(None, objections), None)):
            text += f", {usage.refused} refused ({objection})"
        family = self.cidrs[0].version if self.cidrs else 4
        return f"{text}; add a CIDR to cluster-pool-ipv{family}-cidr"

    def _candidates(self) -> Iterator[Prefix]:
        """Every block once, those behind the last one first."""
        counts = [1 << (self.mask_size - cidr.prefixlen) for cidr in self.cidrs]
        starts = [sum(counts[:i]) for i in range(len(counts))]
        first, total = self._next_index(starts), sum(counts)
        for i in range(total):
            index = (first + i) % total
            pool = bisect_right(starts, index) - 1
            cidr = self.cidrs[pool]
            size = 1 << (cidr.max_prefixlen - self.mask_size)
            base = int(cidr.network_address) + (index - starts[pool]) * size
            yield type(cidr)((base, self.mask_size))

    def _next_index(self, starts: Sequence[int]) -> int:
        """Number of the block behind the last one; 0 if that is in none of the CIDRs."""
        for cidr, start in zip(self.cidrs, starts, strict=True):
            if self.after is not None and holds(cidr, self.after):
                offset = int(self.after.network_address) - int(cidr.network_address)
                return start + (offset >> (cidr.max_prefixlen - self.mask_size)) + 1
        return 0

    def _touched(self, prefix: Prefix) -> Iterator[Prefix]:
        """The blocks of the pool that overlap *prefix*."""
        for cidr in self.cidrs:
            if cidr.version != prefix.version or not cidr.overlaps(prefix):
                continue
            part = prefix if prefix.prefixlen >= cidr.prefixlen else cidr
            if part.prefixlen >= self.mask_size:
                yield part.supernet(new_prefix=self.mask_size)
            else:
                yield from part.subnets(new_prefix=self.mask_size)


def _interval(prefix: Prefix) -> tuple[int, int, int]:
    return prefix.version, int(prefix.network_address), int(prefix.broadcast_address)
