"""The frozen encoder's output for the search: what the dendrites' benchmark reads, and more of each word piece."""

import functools
from pathlib import Path
from typing import Final

import numpy as np
import torch
from nexus_client.embed import default_base
from nexus_client.material import Ids
from nexus_common.layout import WIDTH
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from torch import Tensor

from tests.bench.data import Retrieval
from tests.bench.dendrite_data import SETS, Set, States
from tests.bench.simulate import CACHE

LAYERS: Final = (0, 3)  # of 0 (word pieces) to 6 (what is pooled)
MARK, CONTINUED, DIGITS, POINT, WORD = range(5)
RANKS: Final = (2_100, 3_000, 5_000, 10_000)
"""Word pieces stand in the vocabulary about in the order of how frequent they are."""
KINDS: Final = 5 * (len(RANKS) + 1)
POSITIONS: Final = 16
ALL: Final = {**SETS, "askcfpb": lambda: Retrieval("askcfpb", "askcfpb", "own", dev_by="group")}
READ_AT_ONCE: Final = 64


@functools.cache
def loaded(name: str) -> Set:
    """A set, once a process."""
    return ALL[name]()


class SearchStates(States):
    """Token states end to end, what each word piece is, and the mean of two earlier layers."""

    def __init__(self, name: str) -> None:
        own, public = loaded(name).texts.items, bank_of(name)
        self._texts = [*own, *public]
        super().__init__(self._texts)
        self.bank, self._name = np.arange(len(own), len(self._texts)), name

    def features(self, which: str, numbers: Ids) -> Tensor | None:
        """``kinds`` or ``positions`` of the tokens of these texts, in the order of ``tokens``."""
        if not which:
            return None
        every = self._kinds if which == "kinds" else self._places
        wanted = torch.from_numpy(numbers)
        lengths, starts = self._lengths[wanted], self._starts[wanted]
        shift = torch.repeat_interleave(starts - lengths.cumsum(0) + lengths, lengths)
        return every[torch.arange(int(lengths.sum())) + shift]

    def layers(self, numbers: Ids) -> Tensor:
        """[n, 768]: means over tokens of layers 0 and 3, each of length 1."""
        return self._earlier[torch.from_numpy(numbers)]

    @functools.cached_property
    def _kinds(self) -> Tensor:
        base = default_base()
        tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(SentenceTransformer(str(base), device="cpu").max_seq_length)
        pieces = [piece for one in tokenizer.encode_batch(self._texts) for piece in
                  zip(one.tokens, one.ids, strict=True)]  # fmt: skip
        if len(pieces) != int(self._lengths.sum()):
            raise ValueError(f"{len(pieces)} word pieces, and states of {int(self._lengths.sum())}")
        return torch.tensor([_kind(*piece) for piece in pieces])

    @functools.cached_property
    def _places(self) -> Tensor:
        places = torch.arange(int(self._lengths.sum())) - torch.repeat_interleave(self._starts, self._lengths)
        return torch.log2(places.float() + 1).mul(2).long().clamp_max(POSITIONS - 1)  # half octaves

    @functools.cached_property
    def _earlier(self) -> Tensor:
        file = Path(CACHE).parent / f"layers-{self._name}.npy"
        if not file.exists():
            np.save(file, _earlier(self._texts))
        return torch.from_numpy(np.load(file))


def bank_of(name: str) -> list[str]:
    """Public passages that stand for those of other sites; of another set than the one that is trained on."""
    bank = loaded("askcfpb" if name != "askcfpb" else "banking77")
    if not isinstance(bank, Retrieval):
        raise TypeError("a bank has passages")
    known = loaded(name).texts.number
    texts = (bank.texts.items[number] for site in bank.sites for number in bank.documents[site])
    return [text for text in dict.fromkeys(texts) if text not in known]


def _kind(text: str, number: int) -> int:
    kind = WORD
    if text.startswith("[") and text.endswith("]"):
        kind = MARK
    elif text.startswith("##"):
        kind = CONTINUED
    elif text.isdigit():
        kind = DIGITS
    elif not text.isalnum():
        kind = POINT
    return kind * (len(RANKS) + 1) + int(np.searchsorted(RANKS, number))


@torch.inference_mode()
def _earlier(texts: list[str]) -> np.ndarray:
    base = SentenceTransformer(str(default_base()), device="cpu")
    order, out = sorted(range(len(texts)), key=lambda i: len(texts[i])), np.zeros((len(texts), 2 * WIDTH), np.float32)
    for at in range(0, len(order), READ_AT_ONCE):
        some = order[at : at + READ_AT_ONCE]
        given = base.tokenize([texts[i] for i in some])
        found = base[0].auto_model(given["input_ids"], given["attention_mask"], output_hidden_states=True)
        mask = given["attention_mask"].unsqueeze(-1)
        each = [(found.hidden_states[layer] * mask).sum(dim=1) for layer in LAYERS]
        out[some] = torch.cat([torch.nn.functional.normalize(one, dim=-1) for one in each], dim=-1).numpy()
    return out


@functools.cache
def states_of(name: str) -> SearchStates:
    """A set's states, once a process."""
    return SearchStates(name)
