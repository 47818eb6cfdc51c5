"""The frozen encoder without torch: word pieces by tokenizers, the graph of ``encoder_file.py`` by ONNX Runtime.

What search and serve run on a small board: a process that imports this module loads neither torch nor transformers.
Texts pass one at a time.  An 8-bit graph scales its activations over all that it is given together, so in a batch a
text's vector would depend on the texts beside it (measured: scores off by 0.02); alone it is always the same numbers,
nothing is padded, memory is bounded, and on two cores texts of a sentence and more are no slower.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from nexus_common.errors import NexusError
from nexus_common.layout import WIDTH
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from nexus_client.encoder_file import INPUTS, OUTPUTS

Floats = NDArray[np.float32]
TOKENIZED_CHARACTERS: Final = 50_000  # at once: the library keeps what it cuts off, 90 bytes a character


@dataclass(frozen=True)
class Pieces:
    """Texts as word pieces: numbers of each, and which were cut at the base model's longest."""

    ids: list[list[int]]
    cut: list[bool]

    @property
    def count(self) -> int:
        """Word pieces of all texts, those cut off not among them."""
        return sum(map(len, self.ids))


@dataclass(frozen=True)
class Encoded:
    """A text through the encoder: the base model's own embedding [384], and token states [tokens, 384] where asked."""

    base: Floats
    states: Floats | None = None


class LightEncoder:
    """One session of the graph; safe to share between threads."""

    def __init__(self, graph: Path, base: Path, threads: int) -> None:
        self._base, options = base, onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.enable_cpu_mem_arena = False  # or what the longest text took is never given back
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle means idle
        try:
            self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        except Exception as problem:  # noqa: BLE001  the library has no common class of errors
            raise NexusError(
                f"{graph} cannot be read ({type(problem).__name__}); delete it, and it is made again"
            ) from None

    @cached_property
    def most_pieces(self) -> int:
        """Word pieces that the base model reads of a text, the marks at its ends among them."""
        path = self._base / "sentence_bert_config.json"
        try:
            return int(json.loads(path.read_text(encoding="utf-8"))["max_seq_length"])
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise NexusError(
                f"{path} does not say max_seq_length ({type(problem).__name__}); base_model in site.toml"
            ) from None

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        path = self._base / "tokenizer.json"
        try:
            made = Tokenizer.from_file(str(path))
        except Exception as problem:  # noqa: BLE001  the library raises just that
            raise NexusError(f"the base model's {path} cannot be read: {problem}; check base_model") from None
        made.no_padding()
        made.enable_truncation(self.most_pieces)
        return made

    def pieces(self, texts: Sequence[str]) -> Pieces:
        """Split texts into word pieces; what is beyond the base model's longest is cut off."""
        ids, cut = list[list[int]](), list[bool]()
        for some in groups(texts):
            found: list[Encoding] = self._tokenizer.encode_batch(some)
            ids += [one.ids for one in found]
            cut += [bool(one.overflowing) for one in found]
        return Pieces(ids, cut)

    def encode(self, ids: Sequence[int], *, states: bool) -> Encoded:
        """One text's word pieces; ``states`` asks for token states too."""
        tokens = np.array([ids], np.int64)
        wanted = OUTPUTS if states else OUTPUTS[1:]
        found: list[Any] = self._session.run(wanted, dict(zip(INPUTS, (tokens, np.ones_like(tokens)), strict=True)))
        if found[-1].shape[1] != WIDTH:
            raise NexusError(f"{self._base} gives {found[-1].shape[1]} numbers a text; NEXUS takes {WIDTH}")
        return Encoded(found[-1][0], found[0][0] if states else None)

    def base_embeddings(self, texts: Sequence[str]) -> Floats:
        """[n, 384], of length 1."""
        return np.stack([self.encode(ids, states=False).base for ids in self.pieces(texts).ids])


def groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts in their order, in groups that are split into word pieces at once."""
    group, size = list[str](), 0
    for text in texts:
        if group and size + len(text) > TOKENIZED_CHARACTERS:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    if group:
        yield group
