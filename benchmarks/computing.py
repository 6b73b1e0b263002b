"""How networks compute: in which precision, with which layout in memory, compiled or not."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from plasticity.errors import UserError

if TYPE_CHECKING:  # takes seconds
    from torch import nn

PRECISIONS = ("float32", "bfloat16", "float16")
COMPILED_SHAPES = 64
"""How many variants of a network are compiled (mini-batches of other sizes, heads of other tasks, …) before the rest
runs uncompiled."""


@dataclass(frozen=True)
class Computing:
    """How networks compute while they train; by default as PyTorch does if nothing is said.

    Args:
        precision: One of `PRECISIONS`; in the last two outputs and loss are computed under `torch.autocast`, with
            float32 weights, and in float16 the loss is scaled.
        channels_last: Whether convolutions have their channels last in memory.
        compile: Whether `torch.compile` makes kernels of the network. In tests, and where methods watch units, it runs
            uncompiled.
    """

    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False

    def check(self, device: str) -> None:
        """See that a device can compute so.

        Raises:
            UserError: If not.
        """
        if self == Computing():
            return
        import torch

        kind = torch.device(device).type
        if self.precision not in PRECISIONS:
            raise UserError(f"unknown precision {self.precision!r}: there are {', '.join(PRECISIONS)}")
        if self.precision != "float32" and not torch.amp.is_autocast_available(kind):
            raise UserError(f"PyTorch has no autocast for device {device!r}, so that precision must be float32")
        if self.precision == "float16" and kind == "cpu":
            raise UserError("on a CPU float16 is several times slower than float32: take bfloat16, or a GPU")
        if self.precision == "bfloat16" and kind == "cuda" and not torch.cuda.is_bf16_supported(False):
            raise UserError(f"the GPU {torch.cuda.get_device_name(device)} has no bfloat16: take float16")
        if self.compile:
            _check_compiler(device)

    def network(self, model: "nn.Module") -> "nn.Module":
        """Make a network on its device compute so, in place, and return it."""
        import torch

        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # PyTorch's stub lacks it
        if self.compile:
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_SHAPES)
            # Not for sizes that vary: which of these came first would show in the last digits, and in a run that was
            # interrupted others come first.
            model.compile(dynamic=False)
        return model

    def plugins(self) -> list[Any]:
        """Return the plugins that a strategy needs for it; they stand before all others."""
        from plasticity.loading import MixedPrecisionPlugin

        return [] if self.precision == "float32" else [MixedPrecisionPlugin(self.precision)]

    def asked(self) -> dict[str, Any]:
        """Return what differs from PyTorch's defaults, as in config.json: runs of before have none of it."""
        found = {"precision": self.precision, "channels_last": self.channels_last, "compile": self.compile}
        defaults = Computing()
        return {name: value for name, value in found.items() if value != getattr(defaults, name)}

    def words(self) -> list[str]:
        """Return what differs from the defaults as words of a command line."""
        flags = ["--channels-last"] * self.channels_last + ["--compile"] * self.compile
        return [*(["--precision", self.precision] if self.precision != "float32" else []), *flags]

    def environment(self, device: str) -> dict[str, str]:
        """Return all of it in words, for tables of costs."""
        return {
            "device": device,
            "precision": self.precision,
            "memory_format": "channels last" if self.channels_last else "contiguous",
            "compiled": "by torch.compile" if self.compile else "no",
        }


@lru_cache
def _check_compiler(device: str) -> None:
    """See that something can be compiled, which needs a C++ compiler or, for a GPU, Triton.

    Raises:
        UserError: If not.
    """
    import torch

    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(2, device=device))
    except Exception as error:  # of whatever kind, from PyTorch, Triton or the system
        reason = " ".join(str(error).split("\n\nSet TORCHDYNAMO")[0].split())
        raise UserError(f"torch.compile does not work here: {reason[:200] or type(error).__name__}") from None
