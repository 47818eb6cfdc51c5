"""What a site answers a server that was restored: the versions that came to it, by number, form and hash of content."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from nexus_common.errors import Refusal

MOST_HELD: Final = 512  # versions that a site names: 20 kB
_ENTRY: Final = struct.Struct("<II32s")


@dataclass(frozen=True)
class Holding:
    """A version that came to a site for use: its number, its form's number, and its ``vector_hash``."""

    round: int
    stage: int
    digest: str


def pack_holdings(held: Sequence[Holding]) -> bytes:
    """One behind the other, by rising number; the newest ``MOST_HELD``."""
    return b"".join(_ENTRY.pack(one.round, one.stage, bytes.fromhex(one.digest)) for one in held[-MOST_HELD:])


def unpack_holdings(data: bytes) -> tuple[Holding, ...]:
    """The inverse; Refusal ``malformed`` for too many, or where the numbers do not rise."""
    if len(data) % _ENTRY.size or len(data) > MOST_HELD * _ENTRY.size:
        raise Refusal("malformed", f"{len(data)} bytes are no list of at most {MOST_HELD} versions")
    found = tuple(Holding(number, stage, digest.hex()) for number, stage, digest in _ENTRY.iter_unpack(data))
    if any(later.round <= one.round for one, later in pairwise(found)):
        raise Refusal("malformed", "a list of versions whose numbers do not rise")
    return found
