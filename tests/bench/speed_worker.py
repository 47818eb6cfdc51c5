"""One way of embedding, for ``speed.py``: answers "single" and "batch" with seconds and memory.

It imports NEXUS only where it is NEXUS that is measured.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Embed = Callable[[Sequence[str]], Any]
BATCH = 32


def nexus(folder: Path, base: str, threads: int, precision: str, *, adapted: bool = True) -> Embed:
    from nexus_client.light import LightEncoder
    from nexus_client.light_adapter import LightAdapter
    from nexus_common.versions import StoredAdapter

    encoder = LightEncoder(folder / f"encoder-{precision}.onnx", Path(base), threads)
    if not adapted:
        return encoder.base_embeddings
    stored = StoredAdapter.read(folder / "adapter.safetensors")
    assert stored is not None
    adapter = LightAdapter(stored.layout, stored.vector)

    def embed(texts: Sequence[str]) -> list[Any]:
        encoded = (encoder.encode(ids, states=True) for ids in encoder.pieces(texts).ids)
        return [adapter.project(adapter.pool(one)[None]) for one in encoded]

    return embed


def plain_onnxruntime(folder: Path, base: str, threads: int, precision: str) -> Embed:
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(folder / f"encoder-{precision}.onnx"), options)
    tokenizer = Tokenizer.from_file(f"{base}/tokenizer.json")
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()

    def embed(texts: Sequence[str]) -> list[Any]:
        out = []
        for at in range(0, len(texts), BATCH):
            found = tokenizer.encode_batch(list(texts[at : at + BATCH]))
            given = {"input_ids": np.array([one.ids for one in found]),
                     "attention_mask": np.array([one.attention_mask for one in found])}  # fmt: skip
            out.append(session.run(["base_embedding"], given))
        return out

    return embed


def sentence_transformers(base: str, threads: int) -> Embed:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    model = SentenceTransformer(base, device="cpu", local_files_only=True)
    return lambda texts: model.encode(list(texts), batch_size=BATCH, show_progress_bar=False)


def fastembed(folder: Path, base: str, threads: int) -> Embed:
    import shutil

    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    files = folder / "fastembed"
    if not files.exists():
        files.mkdir()
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            shutil.copy(Path(base) / name, files / name)
        shutil.copy(folder / "encoder-fp32.onnx", files / "model.onnx")
    TextEmbedding.add_custom_model(model="minilm", pooling=PoolingType.MEAN, normalization=True,
                                   sources=ModelSource(hf="none/none"), dim=384, model_file="model.onnx")  # fmt: skip
    model = TextEmbedding("minilm", specific_model_path=str(files), threads=threads)
    return lambda texts: list(model.embed(list(texts), batch_size=BATCH))


def memory() -> float:
    """Resident, MB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1000


def main() -> None:
    name, at, cores = sys.argv[1:]
    folder, threads = Path(at), int(cores)
    given = json.loads((folder / "texts.json").read_text())
    base, began = given["base"], time.perf_counter()
    made: dict[str, Callable[[], Embed]] = {
        "NEXUS int8": lambda: nexus(folder, base, threads, "int8"),
        "NEXUS int8, base": lambda: nexus(folder, base, threads, "int8", adapted=False),
        "NEXUS fp32": lambda: nexus(folder, base, threads, "fp32"),
        "onnxruntime int8": lambda: plain_onnxruntime(folder, base, threads, "int8"),
        "onnxruntime fp32": lambda: plain_onnxruntime(folder, base, threads, "fp32"),
        "sentence-transformers": lambda: sentence_transformers(base, threads),
        "fastembed": lambda: fastembed(folder, base, threads),
    }
    embed = made[name]()
    embed(given["single"][:1])
    print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)
    for line in sys.stdin:
        kind, began = line.strip(), time.perf_counter()
        if kind == "batch":
            embed(given[kind])
        else:
            for text in given[kind]:
                embed([text])
        print(json.dumps({"seconds": time.perf_counter() - began, "memory": memory()}), flush=True)


if __name__ == "__main__":
    main()
