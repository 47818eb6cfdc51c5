"""The wire format of OpenAI's embeddings: requests read and bounded, answers and errors in the form its clients expect.

Lists of token ids are refused, since they are ids of OpenAI's own vocabulary.  No text of a request stands in an error.
"""

import base64
from typing import Annotated, Any, Final, Literal, TypeVar

import numpy as np
from nexus_common.layout import WIDTH
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nexus_client.light import Floats, Pieces

MOST_INPUTS: Final = 2048
MOST_CHARACTERS: Final = 100_000  # of one text; what lies beyond 256 word pieces is not read
Name = Annotated[str, Field(max_length=200)]
Format = Literal["float", "base64"]


class ApiError(Exception):
    """An answer other than 200, in OpenAI's form."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        """As JSON."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class _Request(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True)

    model: Name
    input: Any
    encoding_format: Format | None = None
    dimensions: int | None = None


R = TypeVar("R", bound=_Request)


class EmbeddingsRequest(_Request):
    """``/v1/embeddings``."""

    @property
    def texts(self) -> list[str]:
        """Bounded, none empty; ApiError else."""
        if self.dimensions not in (None, WIDTH):
            raise ApiError(400, f"dimensions must be {WIDTH}, or left out", param="dimensions")
        given = [self.input] if isinstance(self.input, str) else _list(self.input, "texts")
        if isinstance(given[0], int | list):
            raise ApiError(
                400,
                "token ids are of another vocabulary than this model's: send text; langchain's OpenAIEmbeddings does "
                "so with check_embedding_ctx_length=False",
                param="input",
            )
        for i, text in enumerate(given):
            if not isinstance(text, str):
                raise ApiError(400, f"input[{i}] is no text", param="input")
            if not text.strip():
                raise ApiError(400, f"input[{i}] is empty", param="input")
            if len(text) > MOST_CHARACTERS:
                raise ApiError(
                    400, f"input[{i}] has {len(text)} characters, more than {MOST_CHARACTERS}", param="input"
                )
        return given


class AdaptRequest(_Request):
    """``/v1/adapt``: base vectors, stored elsewhere, to be mapped to a model's."""

    @property
    def vectors(self) -> Floats:
        """[n, 384] from lists of numbers or base64 of little-endian float32; ApiError else."""
        rows = []
        for i, one in enumerate(_list(self.input, "vectors")):
            try:
                row = np.frombuffer(base64.b64decode(one, validate=True), "<f4") if isinstance(one, str) else None
                row = np.array(one, np.float32) if row is None else row
            except (ValueError, TypeError, OverflowError):
                raise ApiError(
                    400, f"input[{i}] is no vector: {WIDTH} numbers, or their base64", param="input"
                ) from None
            if row.shape != (WIDTH,) or not np.isfinite(row).all():
                raise ApiError(400, f"input[{i}] is not {WIDTH} finite numbers", param="input")
            length = float(np.linalg.norm(row))
            if abs(length - 1) > 0.01:
                told = f"input[{i}] has length {length:.3f}: base vectors, as nexus@base gives them, have length 1"
                raise ApiError(400, told, param="input")
            rows.append(row)
        return np.stack(rows)


def read_embeddings(body: bytes) -> EmbeddingsRequest:
    """Parse; ApiError where it is no such request."""
    return _read(EmbeddingsRequest, body)


def read_adapt(body: bytes) -> AdaptRequest:
    """Parse; ApiError where it is no such request."""
    return _read(AdaptRequest, body)


def answer(model: str, vectors: Floats, wanted: Format | None, pieces: Pieces | None) -> dict[str, Any]:
    """Embeddings [n, 384] as OpenAI's list; ``usage`` also counts the texts that were cut."""
    little = np.ascontiguousarray(vectors, "<f4")
    shown: list[Any] = (
        [base64.b64encode(row.tobytes()).decode() for row in little] if wanted == "base64" else little.tolist()
    )
    count, cut = (pieces.count, sum(pieces.cut)) if pieces else (0, 0)
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": one} for i, one in enumerate(shown)],
        "model": model,
        "usage": {"prompt_tokens": count, "total_tokens": count, "cut_texts": cut},
    }


def _list(given: Any, what: str) -> list[Any]:
    if not isinstance(given, list) or not given:
        raise ApiError(400, f"input must be a list of {what} that is not empty", param="input")
    if len(given) > MOST_INPUTS:
        raise ApiError(
            400, f"input has {len(given)} entries, more than {MOST_INPUTS}; send several requests", param="input"
        )
    return given


def _read(kind: type[R], body: bytes) -> R:
    try:
        return kind.model_validate_json(body)
    except ValidationError as problem:
        fault = problem.errors(include_input=False, include_url=False)[0]
        param = str(fault["loc"][0]) if fault["loc"] else None
        raise ApiError(400, f"{param or 'the request'}: {fault['msg'][:200]}", param=param) from None
