"""A Merkle tree over the leaves of a log: roots, proofs that a leaf is in it, and that a later tree only added leaves.

Law: pure; the store says what the hash of a stretch of leaves is, and everything else is computed here.
Source: RFC 9162, section 2.1; the numbered steps are its.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

EMPTY_ROOT = hashlib.sha256(b"").digest()
HASH_BYTES = 32


def leaf_hash(leaf: bytes) -> bytes:
    """Return the hash of a leaf; another prefix than of a node, so that none can be taken for the other."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of a node over two others."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of(hashes: Sequence[bytes]) -> bytes:
    """Return the root over all these leaf hashes."""
    peaks = Peaks()
    for one in hashes:
        peaks.add(one)
    return peaks.root()


@dataclass(slots=True)
class Peaks:
    """What must be known of a tree to go on with it: the roots of its complete subtrees, largest first.

    There is one for each bit of `size` that is set.
    """

    size: int = 0
    hashes: list[bytes] = field(default_factory=list)

    def add(self, hash: bytes) -> list[tuple[int, int, bytes]]:
        """Add a leaf; return the subtrees that it completed as (level, position, hash), the leaf itself left out."""
        completed = []
        level, position = 0, self.size
        while position & 1:
            hash = node_hash(self.hashes.pop(), hash)
            level, position = level + 1, position >> 1
            completed.append((level, position, hash))
        self.hashes.append(hash)
        self.size += 1
        return completed

    def root(self) -> bytes:
        """Return the root of the tree."""
        return joined(self.hashes)

    def to_bytes(self) -> bytes:
        """Return the peaks as they are kept; `size` says how many there are."""
        return b"".join(self.hashes)

    @classmethod
    def from_bytes(cls, size: int, kept: bytes) -> "Peaks":
        """Read back what `to_bytes` wrote.

        Raises:
            ValueError: These cannot be the peaks of a tree of this size.
        """
        if size < 0 or len(kept) != size.bit_count() * HASH_BYTES:
            raise ValueError("not the peaks of a tree of this size")
        return cls(size, [kept[at : at + HASH_BYTES] for at in range(0, len(kept), HASH_BYTES)])


def joined(hashes: Iterable[bytes]) -> bytes:
    """Return the hash over neighbouring complete subtrees, largest first."""
    right = b""
    for left in reversed(list(hashes)):
        right = node_hash(left, right) if right else left
    return right or EMPTY_ROOT


def inclusion_stretches(index: int, size: int) -> list[tuple[int, int]]:
    """Return of which stretches of leaves, from and up to, the hashes prove leaf `index` in a tree of `size`.

    Raises:
        ValueError: There is no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError("no such leaf")
    low, high, found = 0, size, []
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            found.append((middle, high))
            high = middle
        else:
            found.append((low, middle))
            low = middle
    return found[::-1]


def consistency_stretches(old: int, new: int) -> list[tuple[int, int]]:
    """Return of which stretches the hashes prove that a tree of `new` leaves begins with the one of `old`.

    Raises:
        ValueError: `old` is not from 1 to `new`.
    """
    if not 1 <= old <= new:
        raise ValueError("a tree proves what was in it before, of 1 leaf at least")
    low, high, found = 0, new, []
    is_whole = True  # Whether what is left of the old tree is the whole of the old tree.
    while high != old:
        middle = low + _split(high - low)
        if old <= middle:
            found.append((middle, high))
            high = middle
        else:
            found.append((low, middle))
            low = middle
            is_whole = False
    if not is_whole:
        found.append((low, high))
    return found[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Tell whether `path` proves that the leaf hash `leaf` stands at `index` in the tree of `size` with this root."""
    # 1. to 5. of 2.1.3.2, with fn, sn and r as there.
    if not 0 <= index < size:
        return False
    fn, sn, r = index, size - 1, leaf
    for p in path:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            r = node_hash(p, r)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = node_hash(r, p)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and r == root


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, path: Sequence[bytes]) -> bool:
    """Tell whether `path` proves that the tree of `new` leaves begins with the tree of `old`."""
    if old == new:
        return not path and old_root == new_root
    if not 1 <= old < new or not path:
        return False
    # 1. to 7. of 2.1.4.2, with fn, sn, fr and sr as there.
    steps = [old_root, *path] if old & (old - 1) == 0 else list(path)
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = steps[0]
    for c in steps[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            fr, sr = node_hash(c, fr), node_hash(c, sr)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node_hash(sr, c)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and fr == old_root and sr == new_root


def complete_subtrees(low: int, high: int) -> list[tuple[int, int]]:
    """Return the complete subtrees, as (level, position), that make up a stretch of leaves, largest first.

    The stretch is one that `inclusion_stretches` or `consistency_stretches` named, or begins at 0.
    """
    found = []
    while low < high:
        level = (high - low).bit_length() - 1
        found.append((level, low >> level))
        low += 1 << level
    return found


def _split(count: int) -> int:
    """Return the largest power of two below `count`."""
    return 1 << ((count - 1).bit_length() - 1)
