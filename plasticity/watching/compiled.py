"""Watch a compiled network within its own graphs, for as long as that is certain to see the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from plasticity.groups import UnitGroups, unwrap
from plasticity.tracing.compilation import Compilation, NotCompiledError, WholeGraph, compilation_of
from plasticity.tracing.preserve import Uncompiled, preserved
from plasticity.tracing.unwatched import unwatched
from plasticity.watching.call_sums import sum_type
from plasticity.watching.calls import EVERY, Call, behind
from plasticity.watching.graph import Place, Recorder, Seen
from plasticity.watching.layer_inputs import FeatureRows
from plasticity.watching.unit_statistics import Sums, plainly

KINDS = 32
"""Sums of so many kinds of passes, such as of mini-batches of different sizes, are kept apart."""


def compiled_watch(
    model: nn.Module, units: UnitGroups, sums: Sequence[Sums], rows: FeatureRows | None, passed: Callable[[], None]
) -> CompiledWatch | None:
    """Return what watches a network within its compiled form, if it has one that is known.

    Args:
        model: The network, as it is called.
        units: The groups.
        sums: Where to add up each.
        rows: Where to keep rows of the representation; None: nowhere.
        passed: As of `CompiledWatch`.
    """
    inner = unwrap(model)
    compilation = compilation_of(model, behind(inner) if model is inner else None)
    # Neither several processes, nor devices on which counts would not be exact.
    alone = model is inner or getattr(model, "_orig_mod", None) is inner
    exact = all(sum_type(parameter.device) == torch.float64 for parameter in inner.parameters())
    if compilation is None or not alone or not exact:
        return None
    return CompiledWatch(inner, compilation, units, sums, rows, passed)


class CompiledWatch:
    """Stands in front of a compiled network, and runs it in graphs that also add up what its units do.

    Where somebody else watches a pass, too, or wants it uncompiled, it is left to those who stand behind, who watch it
    as they watch other networks. So are all, once it has turned out that graphs would not show the same.

    Args:
        model: The network, unwrapped.
        compilation: How it is compiled.
        units: The groups.
        sums: Where to add up each.
        rows: Where to keep rows of the representation; None: nowhere.
        passed: To be called after each pass, also one that fails.
    """

    def __init__(
        self,
        model: nn.Module,
        compilation: Compilation,
        units: UnitGroups,
        sums: Sequence[Sums],
        rows: FeatureRows | None,
        passed: Callable[[], None],
    ) -> None:
        self._model, self._compilation, self._sums, self._rows = model, compilation, sums, rows
        self._passed = passed
        self._waiting = self._failed = False
        last = None if rows is None or units.outputs or not units else units[-1].name
        places = [_place(each, each.group.name == last) for each in sums]
        self._recorder = Recorder(model, places, [*units.outputs] if rows is not None else [])
        self._graph = WholeGraph(self._recorder.run, compilation)
        self.plan()
        self.clear()

    def clear(self) -> None:
        """Forget what was seen and has not been taken in."""
        self._seen: dict[tuple[int, ...], tuple[Tensor, int]] = {}  # and in how many passes

    # --- in front of the network -------------------------------------------------------------------------------

    def plan(self) -> None:
        """Look at the modules that the network has now."""
        self._hooks = self._recorder.hooks()
        self._call = Call(self._model, "")
        self._call.around = self._run

    def wait(self) -> None:
        """Stand in front of the network, before those who are there."""
        if not self._waiting and not self._failed:
            self._waiting = True
            self._call.stand()

    def rest(self) -> None:
        """Make way."""
        if self._waiting:
            self._waiting = False
            self._call.make_way()

    def _run(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._failed or not Uncompiled.alone() or not self._compilation.asked():
            return call(*args, **kwargs)
        try:
            with self._hooks:
                output, seen = self._graph(args, kwargs, partial(self._steps, args, kwargs))
        except NotCompiledError as error:
            self._failed = True
            what = "The network runs uncompiled where its units are watched, as they cannot be within its compiled form"
            warnings.warn(f"{what} ({error})", stacklevel=2)
            return call(*args, **kwargs)
        except BaseException:
            self._passed()
            raise
        self._note(seen)
        self._passed()
        return output

    def _steps(self, args: Any, kwargs: Any) -> tuple[int, ...]:
        """Run the network uncompiled, as if it had not run, and return what is noted then."""
        steps: list[int] = []
        args, kwargs = tree_map_only(Tensor, Tensor.clone, (args, kwargs))
        try:
            with _attributes_kept(self._model), preserved(self._model), unwatched():
                self._recorder.run(lambda *noted: steps.extend(noted), args, kwargs)
        except Exception as error:  # the pass itself will raise it, too
            raise NotCompiledError(f"{type(error).__name__}: {error}"[:200]) from error
        finally:
            self._recorder.end()
        return tuple(steps)

    # --- what was seen -----------------------------------------------------------------------------------------

    def _note(self, seen: Seen) -> None:
        for rows in seen.rows:
            assert self._rows is not None
            self._rows.add(rows, -1)
        if seen.sums is None:
            return
        if seen.calls not in self._seen and len(self._seen) == KINDS:
            self.settle()
        with plainly():
            kept = self._seen.get(seen.calls)
            # The graph may use the memory of what it returns again.
            self._seen[seen.calls] = (seen.sums.clone(), 1) if kept is None else (kept[0].add_(seen.sums), kept[1] + 1)

    def settle(self) -> None:
        """Hand all that was seen on to the sums of the groups."""
        with plainly():
            for calls, (rest, passes) in self._seen.items():
                for number, width, activations in zip(calls[::3], calls[1::3], calls[2::3], strict=True):
                    place = self._recorder.places[number]
                    length = width * (3 if place.signed else 2)
                    mine, rest = rest.split([length, len(rest) - length])
                    fired, *others = mine.view(-1, width).unbind(0)
                    self._sums[number].add_sums([fired.long(), *others], activations // place.size * passes)
        self.clear()

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        self.settle()  # into sums that are copied next
        return _nobody, ()


def _nobody() -> None:
    """Who watches a copied network within its graphs: how the copy is compiled is not known."""


def _place(sums: Sums, rows: bool) -> Place:
    """Return where the units of a group are seen."""
    group, length = sums.group, None if sums.unit_of is None else len(sums.unit_of)
    if group.site is not None:
        module, call, function = group.site.module, group.site.call, group.site.function
    else:
        assert group.at is not None
        module, call, function = group.at, EVERY, False
    return Place(module, call, function, sums.dim, group.size, length, sums.signed, rows)


@contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Run a block that must not leave a trace in the attributes of modules, but for what is in containers."""
    attributes = [(vars(module), dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for now, before in attributes:
            now.clear()
            now.update(before)
