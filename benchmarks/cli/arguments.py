"""What the arguments of all commands have in common."""

import argparse
import difflib
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.computing import PRECISIONS, Computing
from plasticity.errors import UserError
from plasticity.values import LARGEST, shown

MOST_SEEDS = 100_000


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and takes no shortened options."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **{**options, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def misunderstood(word: str, options: list[str]) -> UserError:
    """Say that a word of the command line means nothing, and which option was meant, perhaps."""
    given = word.partition("=")[0]
    longer = [option for option in options if given.startswith("--") and option.startswith(given)]
    close = longer or difflib.get_close_matches(given, options, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return UserError(f"unknown argument {shown(word)}{hint}; --help lists what there is")


def path(text: str) -> Path:
    """Read the name of a file or folder."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} cannot name a file or folder")
    return Path(text)


def listed(text: str) -> tuple[str, ...]:
    """Read names between commas, each once."""
    return tuple(dict.fromkeys(name for name in text.split(",") if name))


def count(text: str) -> int:
    """Read a whole number of at least 1."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """Read a whole number of at least 0."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, not {value}")
    return value


def minutes(text: str) -> float:
    """Read a time of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes")
    return value


def seeds(text: str) -> range:
    """Read N, for seeds 0 to N - 1, or FIRST-LAST."""
    first, dash, last = text.partition("-")
    if dash and not (first.isdecimal() and last.isdecimal() and natural(first) <= natural(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of seeds nor FIRST-LAST")
    found = range(natural(first), natural(last) + 1) if dash else range(count(text))
    if found.stop > LARGEST:
        raise argparse.ArgumentTypeError(f"{text!r} has seeds that are not below 2**63")
    if found.stop - found.start > MOST_SEEDS:
        raise argparse.ArgumentTypeError(f"{text!r} is more than {MOST_SEEDS} seeds")
    return found


def device(name: str) -> str:
    """Return the name of a device that can be used.

    Raises:
        UserError: If it cannot.
    """
    import torch

    try:
        torch.zeros(1, device=name).item()  # the device "meta" holds nothing
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used: {reason}") from None
    return name


def add_computing(command: argparse.ArgumentParser) -> None:
    """Add the options that say how networks compute; see `computing`."""
    names = ", ".join(PRECISIONS)
    command.add_argument("--precision", default="float32", metavar="P", help=f"{names}; by autocast (default: float32)")
    both = argparse.BooleanOptionalAction
    command.add_argument("--channels-last", action=both, default=False, help="channels of convolutions last in memory")
    command.add_argument("--compile", action=both, default=False, help="networks compiled by torch.compile")


def computing(arguments: argparse.Namespace) -> Computing:
    """Return what those options say."""
    return Computing(arguments.precision, arguments.channels_last, arguments.compile)


def add_modules(command: argparse.ArgumentParser) -> None:
    """Add the option by which a user's modules are imported."""
    command.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="a module of yours that registers models, streams or strategies; may be repeated",
    )
