"""A frozen base model's name: a hash over its content, so that all sites of a plan have the same one."""

import hashlib
from pathlib import Path
from typing import Final

from nexus_common.errors import NexusError

_NAMED_BY_CONTENT: Final = (
    "*.safetensors",
    "tokenizer.json",
    "vocab.txt",
    "config.json",
    "modules.json",
    "sentence_bert_config.json",
    "*_Pooling/config.json",
)


def base_hash(folder: Path) -> str:
    """Name a base model by its content: weights, tokenizer, configuration, pooling, length limit (hex SHA-256)."""
    files = sorted({path for pattern in _NAMED_BY_CONTENT for path in folder.glob(pattern)})
    if not any(path.suffix == ".safetensors" for path in files):
        raise NexusError(
            f"{folder} holds no *.safetensors weights: not a SentenceTransformer folder (base_model in site.toml)"
        )
    named = hashlib.sha256(b"nexus base model 1\n")
    for path in files:
        with path.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        named.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return named.hexdigest()
