"""Engine ``perforatedai``: Perforated AI's own open-mode dendrites around an ``nn.Linear``, kept from the user's sight.

The package (3.2.9, compiled for x86_64 Linux alone) is meant to run a whole training script: it prints at import, wants
a global tracker, keeps settings for the whole process, and answers surprises with a debugger or the end of the process.
Here it does the arithmetic and nothing else.  Its state holds the same numbers as the native engine's, see ``entries``.
"""

import contextlib
import io
import os
import pdb
import tempfile
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import torch
from nexus_common.adapter import ACTIVATIONS, Layer
from nexus_common.errors import NexusError
from nexus_common.layout import WIDTH, Activation
from torch import Tensor, nn

VERSION: Final = "3.2.9"
INSTALL: Final = f"pip install --no-deps perforatedai=={VERSION}; pip install matplotlib pandas"


class _Surprise(Exception):
    """The package called its debugger."""


@contextlib.contextmanager
def kept_to_itself() -> Iterator[None]:
    """Whatever the package does beside arithmetic becomes a NexusError that quotes it."""
    said = io.StringIO()

    def surprised(*_: object, **__: object) -> None:
        raise _Surprise

    try:
        with contextlib.redirect_stdout(said), patch.object(pdb, "set_trace", surprised), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    except (_Surprise, SystemExit) as problem:
        raise NexusError(f"perforatedai gave up: {said.getvalue().strip()[-500:]}; use engine = 'native'") from problem


def library() -> SimpleNamespace:
    """The package's modules, set to do what a layer needs; NexusError where it is not installed."""
    try:
        with kept_to_itself(), tempfile.TemporaryDirectory() as fonts, patch.dict(os.environ, {"MPLCONFIGDIR": fonts}):
            from perforatedai import globals_perforatedai as settings  # noqa: PLC0415
            from perforatedai import modules_perforatedai as modules  # noqa: PLC0415
            from perforatedai import tracker_perforatedai as tracker  # noqa: PLC0415
    except ImportError as problem:
        raise NexusError(
            f"engine = 'perforatedai' needs that package, for x86_64 Linux only ({problem}): {INSTALL}; "
            "engine = 'native' computes the same"
        ) from None
    if settings.pai_tracker in (None, []):
        settings.pc.set_silent(True)
        settings.pc.set_verbose(False)
        settings.pc.set_device("cpu")  # where layers are made; they move with the adapter
        with kept_to_itself():
            settings.pai_tracker = tracker.PAINeuronModuleTracker(doing_pai=True, save_name="nexus")
    return SimpleNamespace(settings=settings.pc, modules=modules)


class PerforatedLayer(Layer):
    """``PAINeuronModule`` around an ``nn.Linear``, grown to its number of dendrites at birth."""

    def __init__(self, out: int, dendrites: int, activation: Activation, *, bias: bool) -> None:
        super().__init__()
        self.out, self.dendrites, self.activation = out, dendrites, ACTIVATIONS[activation]
        self._library = library()
        with kept_to_itself(), torch.random.fork_rng():
            self.wrapped: Any = self._library.modules.PAINeuronModule(nn.Linear(WIDTH, out, bias=bias), "layer")
            for _ in range(dendrites):
                self(torch.zeros(2, WIDTH)).sum().backward()  # the package learns shapes in a first pass
                self.wrapped.set_mode("p")
                self.wrapped.create_new_dendrite_module()
                self.wrapped.set_mode("n")
            self.zero_grad()

    def forward(self, x: Tensor) -> Tensor:
        """As the native engine's, to the last bit."""
        self._library.settings.set_pai_forward_function(self.activation)  # one for the whole process
        y: Tensor = self.wrapped(x.reshape(-1, WIDTH))
        return y.reshape(*x.shape[:-1], self.out)

    def entries(self) -> dict[str, Tensor]:
        """The package's state by our names: it keeps all t_i in one parameter, and copies of earlier ones beside it."""
        inner, main = self.wrapped.dendrite_module, self.wrapped.main_module
        named = {name: value for name, value in main.named_parameters()}
        for i in range(self.dendrites):
            named |= {f"dendrites.{i}.{name}": value for name, value in inner.layers[i].named_parameters()}
        for i in range(self.dendrites):
            named[f"tops.{i}"] = self.wrapped.dendrites_to_top[self.dendrites - 1][i]
        for i in range(1, self.dendrites):
            named[f"links.{i - 1}"] = inner.dendrites_to_dendrites[i]
        return named
