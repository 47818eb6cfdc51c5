"""Errors with cause, numbers and remedy.

``NexusError`` is for people: its text names what happened, the numbers seen and what to do.  A ``Refusal`` also
carries a stable code from the table below; the code alone crosses the wire, the text stays where it arose.
"""

from typing import Final

REFUSALS: Final[dict[str, str]] = {
    "malformed": "a message whose bytes do not decode exactly",
    "plan-not-approved": "a plan that this site's policy does not hold as approved",
    "plan-withdrawn": "a plan whose approval was withdrawn at this site",
    "plan-ended": "a plan whose end date has passed",
    "roster": "a roster outside 3 to 64 sites, out of order, or with a name or key twice",
    "threshold": "a threshold other than floor(2n/3) + 1",
    "cohort-too-small": "a smallest cohort below 3, above the roster, or below the site's own minimum",
    "codec": "numbers that the fixed-point codec cannot carry",
    "own-cert": "a roster without this site's name and identity key",
    "epoch-replay": "a key epoch that is not above the last one set up at the site",
    "wrong-state": "a message that the site's state in the protocol does not take now",
    "unknown-site": "a site number outside of the roster, or of those expected",
    "roster-set": "a set-up without enough sites, or without this one",
    "own-keys-changed": "a set-up that shows other keys in this site's name than it made",
    "key-reused": "a one-time key that stands twice in a set-up",
    "bad-key": "a one-time key of low order, which shares no secret",
    "share-decrypt": "a sealed share that does not open, or is not a share",
    "slot-replay": "a slot that was used or passed over, or that the epoch does not have",
    "model-replay": "a model for which a sum was opened before",
    "rounds-spent": "more masked inputs than the plan allows",
    "own-input-missing": "a set of survivors without this site, whose input the server has",
    "second-set": "a second set of survivors in one slot",
    "set-not-committed": "an opening without a signed set of survivors",
    "too-few-set-signatures": "an opening signed by fewer sites than the threshold",
    "below-threshold": "fewer sites than a step of the protocol takes",
    "bad-share": "a share that does not give its owner's secret",
    "input": "a masked input of the wrong length, or weights that no sites can have sent",
    "duplicate": "a second, different message of a site in one step",
    "words-differ": "plan words that are not this plan's",
    "clip-bound": "a clip norm above the site's own bound",
    "no-record-privacy": "no differential privacy, and the site's policy does not accept that",
    "epsilon-bound": "an epsilon above the site's own bound",
    "privacy-not-available": "record-level differential privacy, which this release cannot train with yet",
    "outside-hours": "a time, or a plan's hours, outside of the site's allowed hours",
    "too-few-rows": "fewer training rows than the site's own minimum",
    "paused": "the site has paused itself",
    "left": "the site has left the consortium",
    "policy-invalid": "the site's policy file cannot be used; nothing is done until it can",
    "wrong-context": "a message for another run, round, model or layout than the one in progress",
    "bad-signature": "a signature that does not verify under the enrolled identity key",
    "bad-update": "an update of the wrong length, or with values that are not finite",
    "bad-version": "a version with values that no rounds of its plan can reach",
    "norm-bound": "an update whose L2 norm exceeds the run's clip_norm",
    "unknown-message": "a message type that is not in the protocol",
    "unknown-base-model": "the run names another base model than the site has",
    "layout": "an adapter layout that this program does not support",
    "not-ready": "the site is still embedding its text",
    "no-data": "the site has no usable training rows",
    "site-busy": "the site is working on another run",
    "no-space": "too little space is free on the site's disk",
    "site-failed": "the site met a fault of its own; its log says which",
    "invite-unknown": "no invitation with this secret",
    "invite-expired": "the invitation is older than its validity",
    "invite-used": "the invitation was used with another key",
    "key-in-use": "a key that is enrolled already",
    "request-signature": "a certificate request that is not signed by the keys in it",
    "other-key": "a renewal for other keys than the site is enrolled with; a lost key takes `invite --replace`",
    "bad-certificate": "a renewed certificate that is not of this site and its keys, or no newer than the one in use",
    "wrong-authority": "the server's certificate is not from the pinned consortium key",
}


class NexusError(Exception):
    """A failure that a person can act on."""


class Unreadable(NexusError):
    """A file that cannot be read, for rights, open files or the disk: nothing is known of what it holds."""


class Refusal(NexusError):
    """A request that was refused without any effect; ``code`` is a key of ``REFUSALS``."""

    def __init__(self, code: str, text: str = "") -> None:
        if code not in REFUSALS:
            raise ValueError(f"unknown refusal code {code!r}")
        super().__init__(f"{code}: {text or REFUSALS[code]}")
        self.code = code
