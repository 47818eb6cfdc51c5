"""Small typed gRPC services: enrolment over TLS, administration over a Unix socket.

Requests and answers are pydantic models as JSON, so a method is one function from model to model and nothing needs a
code generator.  A NexusError of a method travels as its text (both ends of the socket are the same machine; enrolment
answers in structured fields instead).
"""

import functools
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import grpc
from pydantic import BaseModel, ConfigDict, ValidationError

from nexus_common.errors import NexusError

MAX_MESSAGE_BYTES: Final = 4 << 20
MAX_STRANGERS_BYTES: Final = 64 << 10  # a certificate request and its answer take 2 kB
MAX_SOCKET_PATH: Final = 100  # the kernel's limit is 108
MAX_ERROR_CHARACTERS: Final = 2000  # an error's text travels as metadata, which gRPC bounds at 16 KiB
log = logging.getLogger(__name__)
_LIMITS: Final = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.so_reuseport", 0)]
_STRANGERS: Final = [  # on a port that anybody may call: nobody holds a thread for long, or much memory
    ("grpc.max_receive_message_length", MAX_STRANGERS_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.max_connection_age_ms", 15_000),
    ("grpc.max_connection_age_grace_ms", 5_000),
    ("grpc.max_concurrent_streams", 2),
]
_NO_PROXY: Final = [("grpc.enable_http_proxy", 0)]  # never from the environment


class Unavailable(ConnectionError):
    """Nobody answers at the address, or this account may not ask there."""


class Body(BaseModel):
    """Base of requests and answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Nothing(Body):
    """No content."""


Req = TypeVar("Req", bound=BaseModel)
Ans = TypeVar("Ans", bound=BaseModel)


@dataclass(frozen=True)
class Method(Generic[Req, Ans]):
    """One call of a service."""

    request: type[Req]
    answer: type[Ans]
    run: Callable[[Req], Ans]


def start(
    methods: Mapping[str, Method[Any, Any]],
    service: str,
    address: str,
    credentials: grpc.ServerCredentials | None = None,
) -> grpc.Server:
    """Serve at ``unix:PATH`` or ``HOST:PORT``; NexusError where the address cannot be taken."""
    options = _STRANGERS if credentials else _LIMITS
    server = grpc.server(ThreadPoolExecutor(8, thread_name_prefix=service), options=options, maximum_concurrent_rpcs=32)
    server.add_generic_rpc_handlers((_handlers(service, methods),))
    try:
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if not port:
        raise NexusError(
            f"cannot listen at {address}: it is taken or not this machine's; is the same program already running?"
        )
    server.start()
    return server


def start_local(methods: Mapping[str, Method[Any, Any]], service: str, socket: Path) -> grpc.Server:
    """Serve on a Unix socket, mode 0660: whoever may enter its folder may call."""
    server = start(methods, service, local_address(socket))
    socket.chmod(0o660)
    return server


def channel(address: str, credentials: grpc.ChannelCredentials | None = None, proxy: str | None = None) -> grpc.Channel:
    """A connection to ``unix:PATH`` or, with credentials, to HOST:PORT, through ``proxy`` where one is given.

    The variable http_proxy is not looked at.
    """
    if credentials is None:
        return grpc.insecure_channel(address, options=_NO_PROXY)
    options = [("grpc.enable_http_proxy", 1), ("grpc.http_proxy", proxy)] if proxy else _NO_PROXY
    return grpc.secure_channel(address, credentials, options=options)


def local_address(socket: Path) -> str:
    """gRPC's name of a Unix socket, also where its path is longer than the kernel takes.

    A long one is reached through its folder's descriptor; NexusError where that folder does not exist.
    """
    path = socket.absolute()
    if len(bytes(path)) > MAX_SOCKET_PATH:
        path = Path(f"/proc/self/fd/{_descriptor(path.parent)}") / path.name
    return f"unix:{path}"


@functools.cache
def _descriptor(folder: Path) -> int:
    """Opened once, and kept as long as this process lives."""
    try:
        return os.open(folder, os.O_PATH | os.O_DIRECTORY)
    except OSError as problem:
        raise NexusError(f"{folder} cannot be opened: {problem.strerror}; nothing runs there") from None


def call(
    channel: grpc.Channel, service: str, name: str, request: BaseModel, answer: type[Ans], timeout_seconds: float = 30.0
) -> Ans:
    """Call and validate; raises what went wrong.

    NexusError with the method's own text, ``Unavailable`` where nobody answers, ``ConnectionError`` for the rest.
    """
    method = channel.unary_unary(
        f"/{service}/{name}", request_serializer=_to_bytes, response_deserializer=answer.model_validate_json
    )
    try:
        return method(request, timeout=timeout_seconds)  # type: ignore[no-any-return]
    except grpc.RpcError as problem:
        if problem.code() == grpc.StatusCode.FAILED_PRECONDITION:
            raise NexusError(problem.details()) from None
        kind = Unavailable if problem.code() == grpc.StatusCode.UNAVAILABLE else ConnectionError
        raise kind(f"{problem.code().name.lower()}: {problem.details()}") from None


def _to_bytes(body: BaseModel) -> bytes:
    return body.model_dump_json().encode()


def _handlers(service: str, methods: Mapping[str, Method[Any, Any]]) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        service,
        {
            name: grpc.unary_unary_rpc_method_handler(_guarded(method), response_serializer=_to_bytes)
            for name, method in methods.items()
        },
    )


def _guarded(method: Method[Any, Any]) -> Callable[[bytes, grpc.ServicerContext], BaseModel]:
    """Validation and NexusError become statuses with text; any other fault is logged here and told as ``internal``."""

    def run(data: bytes, context: grpc.ServicerContext) -> BaseModel:
        try:
            request = method.request.model_validate_json(data)
        except ValidationError:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "malformed")
        try:
            return method.run(request)  # type: ignore[no-any-return]
        except NexusError as problem:
            code, text = grpc.StatusCode.FAILED_PRECONDITION, str(problem)[:MAX_ERROR_CHARACTERS]
        except Exception:
            log.exception("a call met a fault")
            code, text = grpc.StatusCode.INTERNAL, "a fault of the program; its log says which"
        context.abort(code, text)
        raise AssertionError("abort raises")

    return run
