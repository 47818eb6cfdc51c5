"""The bytes of nexus-sa/1's messages (specification, "Messages"): what both state machines write and read.

Every length follows from the plan and from the sets in a message, and is checked before any cryptography.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from nexus_common.errors import Refusal
from nexus_common.secagg.keys import KEY, SIGNATURE, TAG, digest
from nexus_common.secagg.labels import label, label_of
from nexus_common.secagg.plan import ProtocolPlan
from nexus_common.secagg.shamir import SHARE

TO_SITES: Final = ("setup", "adverts", "inbox", "round", "commit-set", "open")
TO_SERVER: Final = ("advert", "envelopes", "input", "set-sig", "shares")
HASH: Final = 32
SET: Final = 8  # u64: bit i stands for site i


def kind_of(data: bytes, known: Iterable[str]) -> str:
    """Which of the ``known`` kinds a message is by its label; Refusal ``malformed``."""
    kind = label_of(data)
    if kind not in known:
        raise Refusal("malformed", f"a message that starts with {data[:24]!r}; is the other side another version?")
    return kind


class Reader:
    """The fields of a message one after the other."""

    def __init__(self, data: bytes, kind: str) -> None:
        self.data, self.kind = data, kind
        self._at = len(label(kind))
        if not data.startswith(label(kind)):
            raise Refusal("malformed", f"a message that starts with {data[:24]!r}, not with {label(kind)!r}")

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes; Refusal ``malformed`` where the message ends before."""
        found = self.data[self._at : self._at + size]
        if len(found) != size:
            raise Refusal("malformed", f"{self.kind}: {len(self.data)} bytes, it ends within a field")
        self._at += size
        return found

    def number(self, size: int) -> int:
        """The next ``size`` bytes as an unsigned little-endian integer."""
        return int.from_bytes(self.take(size), "little")

    def parts(self, count: int, size: int) -> list[bytes]:
        """The next ``count`` fields of ``size`` bytes each."""
        whole = self.take(count * size)
        return [whole[i * size : (i + 1) * size] for i in range(count)]

    def end(self) -> None:
        """Refusal ``malformed`` where something is left."""
        if self._at != len(self.data):
            raise Refusal("malformed", f"{self.kind}: {len(self.data)} bytes, {len(self.data) - self._at} too many")


def members(sites: int) -> list[int]:
    """The numbers in a set, ascending."""
    return [i for i in range(sites.bit_length()) if sites >> i & 1]


def set_of(sites: Iterable[int]) -> int:
    """The set of these sites."""
    return sum(1 << i for i in sites)


def u(value: int, size: int) -> bytes:
    """An unsigned little-endian integer of ``size`` bytes."""
    return value.to_bytes(size, "little")


def context(plan_hash: bytes, setup_hash: bytes, slot: int, model_hash: bytes) -> bytes:
    """``ctx`` [32]: what every key and signature of a slot is bound to."""
    return digest(label("context") + plan_hash + setup_hash + u(slot, 2) + model_hash)


@dataclass(frozen=True)
class Advert:
    """A site's one-time public keys for an epoch, signed."""

    data: bytes
    plan_hash: bytes
    epoch: int
    site: int
    enc_pk: bytes
    mask_pks: tuple[bytes, ...]  # K x [32]
    seed_commits: tuple[bytes, ...]  # K x [32]

    @property
    def body(self) -> bytes:
        """What is signed."""
        return self.data[:-SIGNATURE]

    @property
    def signature(self) -> bytes:
        """Signature [64]."""
        return self.data[-SIGNATURE:]

    @classmethod
    def parse(cls, data: bytes, slots: int) -> "Advert":
        """Read one; Refusal ``malformed``."""
        reader = Reader(data, "advert")
        plan_hash, epoch, site, enc_pk = reader.take(HASH), reader.number(4), reader.number(1), reader.take(KEY)
        keys = reader.parts(2 * slots, KEY)
        reader.take(SIGNATURE)
        reader.end()
        return cls(data, plan_hash, epoch, site, enc_pk, tuple(keys[::2]), tuple(keys[1::2]))


@dataclass(frozen=True)
class Adverts:
    """The transcript of a set-up: who is present, with every key."""

    data: bytes
    present: int
    adverts: tuple[bytes, ...]

    @cached_property
    def setup_hash(self) -> bytes:
        """Its hash [32]."""
        return digest(self.data)

    @classmethod
    def parse(cls, data: bytes, slots: int) -> "Adverts":
        """Read one without looking into the adverts; Refusal ``malformed``."""
        reader = Reader(data, "adverts")
        present = reader.number(SET)
        found = reader.parts(present.bit_count(), advert_size(slots))
        reader.end()
        return cls(data, present, tuple(found))


def advert_size(slots: int) -> int:
    """Bytes of an advert."""
    return len(label("advert")) + HASH + 4 + 1 + KEY + 2 * KEY * slots + SIGNATURE


def box_size(slots: int) -> int:
    """Bytes of a sealed box: two shares a slot, and the tag."""
    return 2 * SHARE * slots + TAG


def input_size(plan: ProtocolPlan) -> int:
    """Bytes of a masked input."""
    return len(label("input")) + HASH + 1 + plan.packed_bytes + SIGNATURE


def set_sig_body(ctx: bytes, survivors: int, site: int) -> bytes:
    """What a site signs to say that it saw this set, and no other, in this slot."""
    return label("set-sig") + ctx + u(survivors, SET) + u(site, 1)
