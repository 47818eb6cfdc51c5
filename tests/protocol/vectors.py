"""The specification's vectors, and parties that replay them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from nexus_common.secagg.client import Client, Offer
from nexus_common.secagg.keys import digest
from nexus_common.secagg.plan import decode

FOLDER = Path(__file__).resolve().parent.parent / "vectors" / "secure-aggregation"


def vector(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


class Tape:
    """``random(len)`` of the vectors: the next bytes of AES-256-CTR under the tape's key."""

    def __init__(self, key: bytes) -> None:
        self._stream = Cipher(AES256(key), CTR(bytes(16))).encryptor()

    def __call__(self, size: int) -> bytes:
        return self._stream.update(bytes(size))


class MemoryRecord:
    """A record that is as durable as the test."""

    def __init__(self, last_epoch: int = 0, rounds: int = 0, opened: tuple[str, ...] = ()) -> None:
        self.epoch, self.sent, self.opened = last_epoch, rounds, {bytes.fromhex(one) for one in opened}

    def last_epoch(self) -> int:
        return self.epoch

    def begin_epoch(self, number: int) -> None:
        self.epoch = number

    def inputs_sent(self) -> int:
        return self.sent

    def count_input(self) -> None:
        self.sent += 1

    def was_opened(self, model_hash: bytes) -> bool:
        return model_hash in self.opened

    def note_opened(self, *names: bytes) -> None:
        for name in names:
            self.opened.add(name)


def site_of(vector: Any, one: Any) -> Client:
    """The site ``one`` of a vector, with its key and its tape."""
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(one["ed25519_secret"]))
    record = MemoryRecord(**vector.get("record", {}))
    plan = decode(bytes.fromhex(vector["plan"]))
    return Client(plan, one["name"], key, record, Tape(bytes.fromhex(one["tape"])), vector.get("min_cohort", 0))


def offer_of(message: Any) -> Offer | None:
    """What the site has for a round of the vectors."""
    if "x" not in message:
        return None
    return Offer(digest(bytes.fromhex(message["model"])), lambda: np.array(message["x"], np.int64))
