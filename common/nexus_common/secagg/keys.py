"""Key derivations, sealing and signatures of nexus-sa/1 (specification, "Conventions" and "Set-up")."""

import hashlib
from typing import Final

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from nexus_common.errors import Refusal
from nexus_common.secagg.labels import label

KEY: Final = 32
SIGNATURE: Final = 64
TAG: Final = 16
_NONCE: Final = bytes(12)  # a sealing key seals one message in its life


def digest(data: bytes) -> bytes:
    """H: SHA-256 [32]."""
    return hashlib.sha256(data).digest()


def derive(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """KDF: HKDF-SHA256 (RFC 5869) [32]; ``info`` stands behind the protocol's name."""
    return HKDF(SHA256(), KEY, salt, b"nexus-sa/1 " + info).derive(secret)


def public_key(secret: bytes) -> bytes:
    """The X25519 public key [32] of 32 secret bytes, which X25519 clamps at use."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


class Exchanger:
    """DH of one secret with many public keys (RFC 7748)."""

    def __init__(self, secret: bytes) -> None:
        self._private = X25519PrivateKey.from_private_bytes(secret)

    def shared(self, public: bytes) -> bytes:
        """The shared secret [32]; Refusal ``bad-key`` where it would be zero, as with a key of low order."""
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            raise Refusal("bad-key", f"key {public.hex()} is of low order: it shares no secret with anybody") from None


def envelope_key(shared: bytes, setup_hash: bytes, sender: int, recipient: int) -> bytes:
    """What seals ``sender``'s box for ``recipient``."""
    return derive(shared, setup_hash, b"envelope" + bytes([sender, recipient]))


def self_key(seed: bytes, ctx: bytes, site: int) -> bytes:
    """PRG key of the mask that only ``site`` adds."""
    return derive(seed, ctx, b"self" + bytes([site]))


def pair_key(shared: bytes, ctx: bytes, one: int, other: int) -> bytes:
    """PRG key of the mask that the lower-numbered of two sites adds and the other one subtracts."""
    return derive(shared, ctx, b"pair" + bytes([min(one, other), max(one, other)]))


def seed_commit(plan_hash: bytes, epoch: int, slot: int, site: int, seed: bytes) -> bytes:
    """The commitment [32] by which an interpolated seed is recognised."""
    place = epoch.to_bytes(4, "little") + slot.to_bytes(2, "little") + bytes([site])
    return digest(label("seed-commit") + plan_hash + place + seed)


def seal(key: bytes, text: bytes) -> bytes:
    """AES-256-GCM; the tag [16] stands at the end."""
    return AESGCM(key).encrypt(_NONCE, text, None)


def unseal(key: bytes, box: bytes) -> bytes:
    """The inverse of ``seal``; Refusal ``share-decrypt``."""
    try:
        return AESGCM(key).decrypt(_NONCE, box, None)
    except InvalidTag:
        raise Refusal("share-decrypt", f"a box of {len(box)} bytes does not open under its sender's key") from None


def signed(key: Ed25519PrivateKey, body: bytes) -> bytes:
    """SIGNED: the body and a signature [64] over all of it."""
    return body + key.sign(body)


def is_signed(identity: bytes, body: bytes, signature: bytes) -> bool:
    """Whether the holder of the Ed25519 public key ``identity`` [32] signed the body."""
    try:
        Ed25519PublicKey.from_public_bytes(identity).verify(signature, body)
    except (InvalidSignature, ValueError):  # ValueError: no point of the curve
        return False
    return True
