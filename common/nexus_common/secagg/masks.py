"""Sums of integer vectors and masks modulo 2^24 or 2^32 (specification, "Masking").

A coordinate's 3 or 4 bytes are read where they lie, as 32-bit words 3 or 4 bytes apart: what a 24-bit word has too much
at its upper end falls away when the sum is packed.
"""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from nexus_common.errors import Refusal

_BLOCK = 16


class MaskedSum:
    """A vector of ``length`` integers modulo 2^mod_bits, zero at first, to which others are added in place."""

    def __init__(self, length: int, mod_bits: int) -> None:
        self.length, self.width = length, mod_bits // 8
        self._sum = np.zeros(length, np.uint32)
        self._zeros = bytes(length * self.width)
        self._bytes = np.zeros(length * self.width + _BLOCK, np.uint8)  # an encryptor wants room for one more block
        self._words = _words(self._bytes, length, self.width)

    def add(self, integers: NDArray[np.int64]) -> None:
        """Add a vector [length] of any integers."""
        self._sum += integers.astype(np.uint32)  # modulo 2^32

    def add_packed(self, data: bytes) -> None:
        """Add what ``packed`` gave; Refusal ``input`` for any other length."""
        if len(data) != len(self._zeros):
            raise Refusal("input", f"a packed vector of {len(data)} bytes, expected {len(self._zeros)}")
        self._bytes[: len(data)] = np.frombuffer(data, np.uint8)
        self._sum += self._words

    def add_mask(self, key: bytes, sign: int) -> None:
        """Add (+1) or subtract (-1) the keystream of AES-256-CTR under ``key`` [32]; a key serves one context."""
        Cipher(AES256(key), CTR(bytes(_BLOCK))).encryptor().update_into(self._zeros, self._bytes.data)
        (np.add if sign > 0 else np.subtract)(self._sum, self._words, out=self._sum)

    def packed(self) -> bytes:
        """The sum, ``width`` bytes little-endian a coordinate."""
        out = bytearray(self.length * self.width)
        lower = np.ndarray(self.length, "<u2", out, 0, (self.width,))
        lower[:] = self._sum.astype(np.uint16)
        upper = np.ndarray(self.length, "<u2" if self.width == 4 else "u1", out, 2, (self.width,))
        upper[:] = (self._sum >> np.uint32(16)).astype(upper.dtype)
        return bytes(out)


def unpack_signed(data: bytes, mod_bits: int) -> NDArray[np.int64]:
    """The integers [length] of a packed sum, read as two's complement in ``mod_bits`` bits."""
    width, shift = mod_bits // 8, 32 - mod_bits
    words = _words(np.frombuffer(data + bytes(4 - width), np.uint8), len(data) // width, width)
    return (words << np.uint32(shift)).view(np.int32).astype(np.int64) >> shift


def _words(data: NDArray[np.uint8], length: int, width: int) -> "np.ndarray[tuple[int], np.dtype[np.uint32]]":
    return np.ndarray(length, "<u4", data, 0, (width,))
