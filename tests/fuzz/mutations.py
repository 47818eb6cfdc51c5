"""How valid bytes are spoilt: flips, cuts, insertions, repetitions, splices, and tokens in others' place."""

import random
import re
from typing import Final

from hypothesis import strategies as st

MAX_BYTES: Final = 1 << 16
TOKENS: Final = (
    b"\x00",
    b"\xff" * 8,
    b"\xff\xff\xff\x7f",
    b"\x80" * 9 + b"\x01",  # the longest varint
    b"\xed\xa0\x80",  # a lone surrogate in UTF-8
    b"\\ud800",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xe2\x80\xae",  # turns the direction of writing
    b"\x1b[2J",
    b"nan",
    b"NaN",
    b"-Infinity",
    b"inf",
    b"1e999",
    b"-0.0",
    b"-1",
    b"2.5",
    b"9" * 400,
    b"9" * 5000,
    b"0x" + b"f" * 5000,
    b"true",
    b"null",
    b"[]",
    b"{}",
    b'""',
    b"[" * 3000,
    b'{"a":' * 3000,
    b"a." * 3000 + b"a = 1\n",
    b"x = " + b"[" * 3000,
    b'"',
    b"'",
    b"\n",
    b"\r",
    b",",
    b">" * 300,
    b"../" * 40,
    b"\xd9\xa3",  # a digit that is not ASCII
    b"99999-12-31",
    b"0001-01-01",
    b'"""',
    b"#",
)
_TOKEN: Final = re.compile(rb'"[^"\n]{0,200}"|-?[0-9][0-9.eE+-]*|true|false|null|[A-Za-z_]+')


def spoilt(seed: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to four changes of ``seed``."""
    data = bytearray(seed)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(data))
        end = min(len(data), at + rng.choice((1, 2, 4, 8, 32, 256)))
        match rng.randrange(9):
            case 0 if data:
                data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
            case 1:
                data[at:end] = rng.randbytes(rng.choice((1, 2, 4, 8)))
            case 2:
                del data[at:end]
            case 3:
                del data[at:]
            case 4:
                data[at:at] = rng.choice(TOKENS)
            case 5:
                data[at:at] = bytes(data[at:end]) * rng.choice((1, 2, 100, 5000))
            case 6:
                cut = rng.randint(0, len(other))
                data[at:] = other[cut:]
            case 7:
                data[at:end] = rng.choice(TOKENS)
            case _:
                found = list(_TOKEN.finditer(bytes(data[:20_000])))
                if found:
                    one = rng.choice(found)
                    data[one.start() : one.end()] = rng.choice((rng.choice(TOKENS), rng.choice(found)[0]))
        del data[MAX_BYTES:]
    return bytes(data)


def inputs(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """Mostly spoilt seeds, now and then any bytes."""
    near = st.builds(spoilt, st.sampled_from(seeds), st.sampled_from(seeds), st.randoms(use_true_random=False))
    return st.one_of(near, near, near, near, st.sampled_from(seeds), st.binary(max_size=300))
