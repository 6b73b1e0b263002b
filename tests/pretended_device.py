"""A device that computes on the CPU, and is as strict about where tensors are as a GPU is.

Within `pretended()` everything on the device "meta" has values: they are computed on the CPU, by the same kernels and
the same random numbers. What a GPU would refuse raises `WrongDeviceError`: operations on tensors of both devices, but
for those that PyTorch allows. Where the host would wait for the device (`item`, `nonzero`, copies in either direction,
indices that are masks, or that lie on the CPU) is counted; `torch.tensor(..., device=DEVICE)`, which waits too, cannot
be followed, and fails.
"""

from collections import Counter
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
_aten = torch.ops.aten
_COPIES = {_aten.copy_.default, _aten._to_copy.default, _aten.lift_fresh.default, _aten._copy_from.default}
# Their indices, the second argument, may lie on the CPU if what is indexed does not.
_INDEXING = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
_ASKING = {
    _aten._local_scalar_dense.default,
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten.equal.default,
    _aten.bincount.default,
    _aten._unique2.default,
    _aten.unique_dim.default,
    _aten.repeat_interleave.Tensor,
}


class WrongDeviceError(RuntimeError):
    """An operation that a GPU would refuse."""


class OnDevice(Tensor):
    """A tensor there; `values` are on the CPU."""

    @staticmethod
    def __new__(cls, values, requires_grad=False):
        found = Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
            requires_grad=requires_grad,
        )
        found.values = values
        return found

    def __repr__(self, *, tensor_contents=None):
        return f"OnDevice({self.values!r})"

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, other):
        Tensor.data.__set__(self, other)
        self.values = other.values

    def tolist(self):
        return self.cpu().tolist()

    def untyped_storage(self):
        return self.values.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {}, Counter())


class _Mode(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.asked = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {}, self.asked)


def _run(func, args, kwargs, asked):
    leaves = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    there = [leaf for leaf in leaves if isinstance(leaf, OnDevice)]
    here = [leaf for leaf in leaves if not isinstance(leaf, OnDevice)]
    if any(leaf.device == DEVICE for leaf in here):
        raise AssertionError(f"{func}: a tensor on the device that was made outside of `pretended()`")
    asked_for = kwargs.get("device")
    target = torch.device(asked_for) if asked_for is not None else None
    if there and here and func not in _COPIES:
        allowed = tree_flatten(args[1])[0] if func in _INDEXING and isinstance(args[0], OnDevice) else []
        wrong = [leaf for leaf in here if leaf.dim() > 0 and not any(leaf is each for each in allowed)]
        inplace = func._schema.arguments[0].alias_info is not None and bool(here) and args[0] is here[0]
        if wrong or inplace:
            raise WrongDeviceError(f"{func}: tensors on both devices, {[tuple(leaf.shape) for leaf in wrong or here]}")
    if there and (func in _ASKING or (target is not None and target != DEVICE)):
        asked[func.__name__] += 1
    if func is _aten.copy_.default and here and there:
        waits = args[0] is here[0] or not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        asked["copy_"] += waits
    if func is _aten._to_copy.default and here and target == DEVICE:
        asked["copy to the device"] += not kwargs.get("non_blocking", False)
    if func in _INDEXING and there:
        asked["index"] += any(_copied_or_counted(func, args, each) for each in tree_flatten(args[1])[0])
    outputs_there = target == DEVICE if target is not None else bool(there)
    if func is _aten.copy_.default or func is _aten._to_copy.default and target is None:
        outputs_there = isinstance(args[0], OnDevice)
    plain_args, plain_kwargs = tree_map(
        lambda leaf: leaf.values if isinstance(leaf, OnDevice) else leaf, (args, kwargs)
    )
    if target is not None:
        plain_kwargs["device"] = "cpu"
    results = func(*plain_args, **plain_kwargs)
    # In place, the tensor that was given is what comes back.
    given = {id(leaf.values): leaf for leaf in there}

    def back(result):
        if not isinstance(result, Tensor) or not outputs_there:
            return result
        return given.get(id(result)) if id(result) in given else OnDevice(result)

    return tree_map(back, results)


def _copied_or_counted(func, args, index):
    """Whether an index has to be brought to the device, or is a mask whose entries have to be counted."""
    if not isinstance(index, Tensor):
        return False
    filled = func is not _aten.index.Tensor and args[2].numel() == 1  # by one value, for which none are counted
    return not isinstance(index, OnDevice) or (index.dtype in (torch.bool, torch.uint8) and not filled)


@contextmanager
def pretended():
    """Give tensors on the device values; yields how often the host asked for some, by operation."""
    with _Mode() as mode:
        yield mode.asked
