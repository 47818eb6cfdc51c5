"""Twelve words that stand for a plan: what people read to each other on the telephone.

128 bits of scrypt over the plan's hash, as a BIP-39 mnemonic of the public English list (the library's): its checksum
tells a misheard word from another plan.  scrypt makes each try of somebody who searches for a second plan with equal
words cost 128 MiB and a good part of a second.
"""

from typing import Final

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from mnemonic import Mnemonic

from nexus_common.config import nearest
from nexus_common.errors import Refusal

COUNT: Final = 12
_LIST: Final = Mnemonic("english")


def plan_words(plan_hash: bytes) -> tuple[str, ...]:
    """The words of a plan's hash; 128 MiB of memory for a moment."""
    entropy = Scrypt(salt=b"nexus plan words 1\n", length=16, n=2**17, r=8, p=1).derive(plan_hash)
    return tuple(_LIST.to_mnemonic(entropy).split())


def check_words(typed: str, plan_hash: bytes) -> None:
    """Raise Refusal ``words-differ`` unless ``typed`` are this plan's words; the text never says the right ones."""
    words = tuple(typed.lower().replace(",", " ").split())
    if unknown := [word for word in words if word not in _LIST.wordlist]:
        hint = nearest(unknown[0], _LIST.wordlist)
        raise Refusal("words-differ", f"{unknown[0]!r:.40} is not in the list of plan words{hint}")
    if len(words) != COUNT:
        raise Refusal("words-differ", f"{len(words)} words, a plan has {COUNT}")
    if words == plan_words(plan_hash):
        return
    if not _LIST.check(" ".join(words)):
        raise Refusal(
            "words-differ",
            "these twelve belong to no plan at all: a word was misheard or misplaced; ask for them again",
        )
    raise Refusal(
        "words-differ",
        "these are the words of another plan: the server has shown this site a different one. Do not approve; tell the "
        "others on the call, and ask the coordinator why",
    )
