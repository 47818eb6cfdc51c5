"""The frozen encoder without torch: word pieces by tokenizers, the graph of ``encoder_file.py`` by ONNX Runtime.

What search and serve run on a small board: a process that imports this module loads neither torch nor transformers.
Batches hold texts of like length, so padding is rare, and a bounded number of word pieces, so memory is bounded too.
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
BATCH_TEXTS: Final = 16
BATCH_PIECES: Final = 4096  # padded, of one batch: 6 MB of token states
TOKENIZED_AT_ONCE: Final = 1024


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
class Batch:
    """Some texts through the encoder: which ones [b], the base model's own embedding of each [b, 384], and where they
    were asked for token states [b, longest, 384] with their mask [b, longest]."""

    rows: list[int]
    base: Floats
    states: Floats | None
    mask: Floats


class LightEncoder:
    """One session of the graph; safe to share between threads."""

    def __init__(self, graph: Path, base: Path, threads: int) -> None:
        self._base, options = base, onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.enable_cpu_mem_arena = False  # half the memory for 1.5 times the seconds of a long batch
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
        for at in range(0, len(texts), TOKENIZED_AT_ONCE):
            found: list[Encoding] = self._tokenizer.encode_batch(list(texts[at : at + TOKENIZED_AT_ONCE]))
            ids += [one.ids for one in found]
            cut += [bool(one.overflowing) for one in found]
        return Pieces(ids, cut)

    def batches(self, pieces: Pieces, *, states: bool) -> Iterator[Batch]:
        """All texts, the longest first; ``states`` asks for token states too."""
        for rows in plan_batches([len(ids) for ids in pieces.ids]):
            yield self.run([pieces.ids[row] for row in rows], rows, states=states)

    def run(self, ids: Sequence[Sequence[int]], rows: list[int], *, states: bool) -> Batch:
        """One batch of word pieces."""
        longest = max(2, *(len(one) for one in ids))  # the graph takes no fewer
        tokens, mask = np.zeros((len(ids), longest), np.int64), np.zeros((len(ids), longest), np.int64)
        for i, one in enumerate(ids):
            tokens[i, : len(one)], mask[i, : len(one)] = one, 1
        wanted = OUTPUTS if states else OUTPUTS[1:]
        found: list[Any] = self._session.run(wanted, dict(zip(INPUTS, (tokens, mask), strict=True)))
        if found[-1].shape[1] != WIDTH:
            raise NexusError(f"{self._base} gives {found[-1].shape[1]} numbers a text; NEXUS takes {WIDTH}")
        return Batch(rows, found[-1], found[0] if states else None, mask.astype(np.float32))

    def base_embeddings(self, texts: Sequence[str]) -> Floats:
        """[n, 384], of length 1."""
        out = np.empty((len(texts), WIDTH), np.float32)
        for batch in self.batches(self.pieces(texts), states=False):
            out[batch.rows] = batch.base
        return out


def plan_batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows of each batch: the longest texts first, at most ``BATCH_TEXTS``, and ``BATCH_PIECES`` with the padding."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    at = 0
    while at < len(order):
        most = max(1, min(BATCH_TEXTS, BATCH_PIECES // max(1, lengths[order[at]])))
        yield order[at : at + most]
        at += most
