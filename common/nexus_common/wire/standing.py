"""Where a site stands on a plan, under its own signature: what the server passes on it cannot make up."""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from nexus_common.errors import Refusal
from nexus_common.wire.messages import Standing


def _standing_bytes(plan: bytes, site: str, state: str, code: str) -> bytes:
    return b"nexus standing 1\n" + plan + "\n".join((site, state, code)).encode()


def signed_standing(key: Ed25519PrivateKey, plan: bytes, site: str, state: str, code: str) -> Standing:
    """Where a site stands on a plan (its hash), under the site's identity."""
    return Standing(state, code, key.sign(_standing_bytes(plan, site, state, code)))


def verify_standing(identity: bytes, plan: bytes, site: str, standing: Standing) -> None:
    """Raise Refusal ``bad-signature`` unless ``site`` itself signed this about this plan."""
    try:
        Ed25519PublicKey.from_public_bytes(identity).verify(
            standing.signature, _standing_bytes(plan, site, standing.state, standing.code)
        )
    except InvalidSignature:
        raise Refusal("bad-signature", f"the notice in {site}'s name is not signed by {site}") from None
