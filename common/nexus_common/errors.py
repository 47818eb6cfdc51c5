"""Errors with cause, numbers and remedy.

``NexusError`` is for people: its text names what happened, the numbers seen and what to do.  A ``Refusal`` also
carries a stable code from the table below; the code alone crosses the wire, the text stays where it arose.
"""

from typing import Final

REFUSALS: Final[dict[str, str]] = {
    "malformed": "a message whose bytes do not decode exactly",
    "wrong-context": "a message for another run, round, model or layout than the one in progress",
    "bad-signature": "a signature that does not verify under the enrolled identity key",
    "bad-update": "an update of the wrong length, or with values that are not finite",
    "norm-bound": "an update whose L2 norm exceeds the run's clip_norm",
    "unknown-message": "a message type that is not in the protocol",
    "unknown-base-model": "the run names another base model than the site has",
    "layout": "an adapter layout that this program does not support",
    "not-ready": "the site is still embedding its text",
    "no-data": "the site has no usable training rows",
    "site-busy": "the site is working on another run",
    "site-failed": "the site met a fault of its own; its log says which",
    "no-secure-aggregation-yet": "an address beyond loopback, refused until updates are masked",
    "invite-unknown": "no invitation with this secret",
    "invite-expired": "the invitation is older than its validity",
    "invite-used": "the invitation was used with another key",
    "key-in-use": "a key that is enrolled already",
    "request-signature": "a certificate request that is not signed by the keys in it",
    "wrong-authority": "the server's certificate is not from the pinned consortium key",
}


class NexusError(Exception):
    """A failure that a person can act on."""


class Refusal(NexusError):
    """A request that was refused without any effect; ``code`` is a key of ``REFUSALS``."""

    def __init__(self, code: str, text: str = "") -> None:
        if code not in REFUSALS:
            raise ValueError(f"unknown refusal code {code!r}")
        super().__init__(f"{code}: {text or REFUSALS[code]}")
        self.code = code
