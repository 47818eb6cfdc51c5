"""The frozen encoder: each text passes it once, everything later works on the cache.

The only module that imports sentence_transformers, and only when something is missing from the cache: it costs seconds
and hundreds of megabytes.  Nothing is ever downloaded: the base model is a local folder, the default one package data.
"""

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from nexus_common.errors import NexusError
from nexus_common.layout import WIDTH
from numpy.typing import NDArray
from torch import Tensor

from nexus_client.cache import POOLED, TOKENS, Cache
from nexus_client.material import Ids
from nexus_client.site import default_base as default_base  # noqa: PLC0414  where everybody looks for it
from nexus_client.train import best_device

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BATCH_TEXTS: Final = 32
Progress = Callable[[int, int], None]


class Encoder:
    """Texts to cached states."""

    def __init__(self, folder: Path, cache: Cache) -> None:
        self.folder, self.cache = folder, cache
        self._model: SentenceTransformer | None = None

    def fill(self, texts: Sequence[str], *, tokens: Sequence[str], progress: Progress = lambda *_: None) -> None:
        """Make sure that ``texts`` have pooled vectors and ``tokens`` (a part of them) token states.

        ``progress`` may raise to end it; what was done until then is kept.
        """
        both = dict.fromkeys(self.cache.missing(TOKENS, tokens))
        pooled = [text for text in self.cache.missing(POOLED, texts) if text not in both]
        done, total = 0, len(both) + len(pooled)
        try:
            for wanted, keep_tokens in ((list(both), True), (pooled, False)):
                for batch, states, vectors in self._encode(wanted):
                    if keep_tokens:
                        self.cache.put(TOKENS, list(zip(batch, states, strict=True)))
                    self.cache.put(POOLED, list(zip(batch, vectors, strict=True)))
                    done += len(batch)
                    progress(done, total)
        finally:
            self.release()

    def token_batches(self, texts: Sequence[str]) -> Iterator[tuple[list[str], Tensor, Tensor]]:
        """(texts, token states end to end, lengths) in small batches: from the cache, else encoded and not stored."""
        missing = set(self.cache.missing(TOKENS, texts))
        there = sorted((text for text in texts if text not in missing), key=len)
        for start in range(0, len(there), BATCH_TEXTS):
            batch = there[start : start + BATCH_TEXTS]
            states, lengths = self.cache.tokens(batch)
            yield batch, torch.from_numpy(states).float(), torch.from_numpy(lengths)
        for batch, each, _ in self._encode(sorted(missing)):
            yield batch, torch.from_numpy(np.concatenate(each)).float(), torch.tensor([len(one) for one in each])

    def release(self) -> None:
        """Drop the encoder's weights from memory."""
        if self._model is not None:  # else collecting would only cost time, at every version that is judged
            self._model = None
            gc.collect()

    def _encode(self, texts: Sequence[str]) -> Iterator[tuple[list[str], list[NDArray[Any]], NDArray[np.float32]]]:
        """Batches of (texts, token states each, pooled vectors)."""
        ordered = sorted(texts, key=len, reverse=True)  # like lengths together: less padding
        for start in range(0, len(ordered), BATCH_TEXTS):
            batch = ordered[start : start + BATCH_TEXTS]
            found: Any = self._loaded().encode(
                batch, output_value=None, batch_size=BATCH_TEXTS, show_progress_bar=False
            )
            states = [one["token_embeddings"][one["attention_mask"].bool()].half().cpu().numpy() for one in found]
            vectors = np.stack([one["sentence_embedding"].float().cpu().numpy() for one in found])
            yield batch, states, vectors

    def _loaded(self) -> "SentenceTransformer":
        if self._model is None:
            self._model = loaded(self.folder, str(best_device()))
        return self._model


def loaded(folder: Path, device: str) -> "SentenceTransformer":
    """A model folder as sentence-transformers loads it by default: offline, no code of the folder's own."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415
    from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415

    disable_progress_bar()  # type: ignore[no-untyped-call]
    model = SentenceTransformer(str(folder), device=device, local_files_only=True).eval()
    if (width := model.get_embedding_dimension()) != WIDTH:
        raise NexusError(f"the model {folder} gives {width} numbers a text; NEXUS takes {WIDTH}")
    return model


class CachedStates:
    """The cache as the trainer reads it (``train.States``): pooled vectors in memory, token states memory-mapped."""

    def __init__(self, cache: Cache, texts: Sequence[str]) -> None:
        self._cache, self._texts = cache, texts

    @cached_property
    def _pooled(self) -> Tensor:
        return torch.from_numpy(self._cache.pooled(self._texts))

    def pooled(self, numbers: Ids) -> Tensor:
        """[n, 384]; all are read at the first call, 1.5 kB each, and training with salience may never ask."""
        return self._pooled[torch.from_numpy(numbers)]

    def tokens(self, numbers: Ids) -> tuple[Tensor, Tensor]:
        """States end to end [all tokens, 384] and lengths [n]."""
        states, lengths = self._cache.tokens([self._texts[number] for number in numbers])
        return torch.from_numpy(states).float(), torch.from_numpy(lengths)
