"""The frozen encoder as an ONNX graph, so that serving needs no torch: made once, in a process of its own.

Token ids to ``token_embeddings`` [batch, tokens, 384] and ``base_embedding`` [batch, 384], the base model's own
output.  Adapters are not in it: they are some 30 microseconds of numpy (``light.py``), and one graph serves all.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, Literal

from nexus_common.account import act_as_owner
from nexus_common.disk import write_durably
from nexus_common.errors import NexusError

Precision = Literal["fp32", "int8"]
PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "int8")
INPUTS: Final = ("input_ids", "attention_mask")
OUTPUTS: Final = ("token_embeddings", "base_embedding")
MOST_TOKENS: Final = 512  # positions that the base model has
MAKING: Final = "making"  # and the process's number begin the name of what is not whole yet


def encoder_file(base: Path, folder: Path, precision: Precision) -> Path:
    """The graph of the base model in ``folder``; where it is missing, both precisions are made, in about 20 s.

    ``folder`` belongs to this base model alone (its name holds the base model's hash).  Where root asks for a graph in
    another account's folder, that account makes it, and can renew it.
    """
    wanted = folder / f"encoder-{precision}.onnx"
    _sweep(folder)
    if wanted.exists():
        return wanted
    # torch's memory goes with the process
    done = subprocess.run(
        [sys.executable, "-P", "-m", "nexus_client.encoder_file", str(base), str(folder)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode or not wanted.exists():
        last = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
        raise NexusError(f"the base model {base} could not be written as {wanted.name}: {last}")
    return wanted


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed have left of files in the making."""
    for file in folder.glob(f"{MAKING}.*"):
        process = file.name.split(".")[1]
        if process.isdecimal() and not _is_alive(int(process)):
            file.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:
        return True  # of another account
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _graph(base: Path, file: Path) -> None:
    """Export with torch's own exporter."""
    import torch  # noqa: PLC0415  only in the process that makes the file
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            options = {"attn_implementation": "eager"}
            self.modules_in_order: Any = SentenceTransformer(
                str(base), device="cpu", local_files_only=True, model_kwargs=options
            )

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            features = {"input_ids": input_ids, "attention_mask": attention_mask}
            for module in self.modules_in_order:
                features = module(features)
            return features["token_embeddings"], features["sentence_embedding"]

    ids, mask = torch.arange(1000, 1016).reshape(2, 8), torch.ones(2, 8, dtype=torch.int64)
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens", min=2, max=MOST_TOKENS)
    shape = {0: batch, 1: tokens}
    with torch.inference_mode():
        torch.onnx.export(
            Encoder().eval(), (ids, mask), str(file), input_names=list(INPUTS), output_names=list(OUTPUTS),
            dynamic_shapes=(shape, shape), dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip


def _quantised(graph: Path, file: Path) -> None:
    """8-bit weights, a scale for each channel; activations are scaled as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    plain = graph.with_suffix(".shaped.onnx")
    quant_pre_process(str(graph), str(plain), skip_symbolic_shape=True)
    quantize_dynamic(str(plain), str(file), per_channel=True, weight_type=QuantType.QInt8)
    plain.unlink()


def make(base: Path, folder: Path) -> None:
    """Write both files, each whole or not at all."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = {precision: folder / f"{MAKING}.{os.getpid()}.{precision}.onnx" for precision in PRECISIONS}
    try:
        _graph(base, beside["fp32"])
        _quantised(beside["fp32"], beside["int8"])
        for precision, file in beside.items():
            write_durably(folder / f"encoder-{precision}.onnx", file.read_bytes())
    finally:
        for file in beside.values():
            file.unlink(missing_ok=True)


if __name__ == "__main__":
    wanted = Path(sys.argv[2])
    act_as_owner(next(one for one in (wanted, *wanted.parents) if one.exists()))
    make(Path(sys.argv[1]), wanted)
