"""TOML files, read into frozen, typed settings.  Errors say which key, what was found, and the nearest known key."""

import difflib
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nexus_common.errors import NexusError

SITE_PATTERN: Final = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
SiteName = Annotated[str, Field(pattern=SITE_PATTERN)]
"""1 to 63 of a-z, 0-9 and inner hyphens: safe as a file name, a certificate name and a metric label."""


class Settings(BaseModel):
    """Base of all settings: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


S = TypeVar("S", bound=BaseModel)


def parse_toml(kind: type[S], text: str, where: str) -> S:
    """Parse and validate; raises NexusError that lists every fault with its key."""
    return validate(kind, parse_table(text, where), where)


def parse_table(text: str, where: str) -> dict[str, Any]:
    """TOML as it stands, not validated; NexusError where it is none."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as problem:  # TOMLDecodeError, and what tomllib lets through
        raise NexusError(f"{where}: not valid TOML: {problem}") from None


def validate(kind: type[S], found: dict[str, Any], where: str) -> S:
    """Validate as if it came as JSON (tuples from lists, dates as text): strict about values and not about syntax."""
    try:
        return kind.model_validate_json(json.dumps(found, default=str))
    except ValidationError as problem:
        faults = "".join(f"\n  {_fault(kind, error)}" for error in problem.errors())
        raise NexusError(f"{where}: {problem.error_count()} setting(s) to correct:{faults}") from None
    except (TypeError, ValueError, RecursionError) as problem:  # a number of 5,000 digits, a key of 1,000 parts
        raise NexusError(f"{where}: {problem}") from None


def read_toml(kind: type[S], path: Path, remedy: str) -> S:
    """``parse_toml`` of a file; ``remedy`` says what to do where the file is missing."""
    try:
        return parse_toml(kind, path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise NexusError(f"{path} does not exist; {remedy}") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise NexusError(f"{path} cannot be read: {problem}") from None


def toml_string(text: str) -> str:
    """A basic string of TOML; NexusError for text that TOML cannot hold (a file name that is not UTF-8)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NexusError(f"{text!r} is not UTF-8, and settings files are; rename it") from None
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name, ready to stand at the end of a sentence; empty where nothing is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _fault(kind: type[BaseModel], error: Any) -> str:
    path = [str(part) for part in error["loc"]]
    key = ".".join(path) or "(file)"
    if error["type"] == "extra_forbidden":
        known = _keys_at(kind, path[:-1])
        return f"{key}: unknown key{nearest(path[-1], known) or '; known: ' + ', '.join(known)}"
    if error["type"] == "missing":
        return f"{key}: missing"
    shown = "" if error["type"] == "value_error" else f" (found {error['input']!r:.80})"
    return f"{key}: {error['msg'].removeprefix('Value error, ')}{shown}"


def _keys_at(kind: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = kind.model_fields.get(part)
        for inner in (field.annotation, *get_args(field.annotation)) if field else ():
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                kind = inner
    return list(kind.model_fields)
