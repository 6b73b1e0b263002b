"""States as bytes that hold tensors, numbers, text and containers of these, and load with `weights_only=True`."""

import io
from typing import Any

import numpy as np
import torch
from torch import Tensor

_NUMBERS = (bool, int, float, str, bytes, type(None))


class NotPlainError(Exception):
    """Something that is neither a number nor text nor a tensor; the message says where it is and what."""


class UnreadableError(Exception):
    """Bytes that are no state; the message says why."""


def to_bytes(state: Any) -> bytes:
    """Turn a state into bytes.

    Args:
        state: Tensors, numbers, text, and dictionaries, lists, tuples and sets of them.

    Raises:
        NotPlainError: If there is anything else in it.
    """
    buffer = io.BytesIO()
    torch.save(plain(state, "state"), buffer)
    return buffer.getvalue()


def from_bytes(content: bytes) -> Any:
    """Turn bytes of `to_bytes` into a state again; tensors come to the device on which they were.

    Raises:
        UnreadableError: If they are anything else. Nothing of what they hold is executed.
    """
    try:
        return torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:  # whatever may come of reading a file that is none
        raise UnreadableError(str(error).splitlines()[0] if str(error) else type(error).__name__) from None


def plain(value: Any, where: str) -> Any:
    """Return a state with every number of numpy's as Python's, and tensors without the memory around them.

    Raises:
        NotPlainError: If something cannot be saved.
    """
    if type(value) in _NUMBERS:
        return value
    if isinstance(value, Tensor):
        found = value.detach()
        return found if found.untyped_storage().nbytes() == found.nbytes else found.clone()
    if isinstance(value, np.generic):
        return plain(value.item(), where)
    if isinstance(value, dict):
        return {plain(key, f"a key of {where}"): plain(each, f"{where}[{key!r}]") for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        if all(type(each) in _NUMBERS for each in value) and type(value) in (list, tuple, set):
            return value
        parts = [plain(each, f"{where}[{number}]") for number, each in enumerate(value)]
        return parts if isinstance(value, list) else tuple(parts) if isinstance(value, tuple) else set(parts)
    raise NotPlainError(f"{where} is a {type(value).__name__}")
