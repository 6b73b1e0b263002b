"""The states of a run's plugins: by their own `state_dict`, of replay by its samples, else by plain attributes."""

from collections.abc import Sequence
from typing import Any

from avalanche.training.plugins import ReplayPlugin

from benchmarks.resuming.buffers import BufferIndex, UnknownBufferError
from benchmarks.resuming.plain import NotPlainError, plain

_OURS = ("plasticity", "strategies", "benchmarks")


class NoStateError(Exception):
    """A plugin whose state cannot be taken; the message says which and why."""


def plugin_states(plugins: Sequence[Any], buffers: BufferIndex, experiences: int) -> list[dict[str, Any]]:
    """Return the states of plugins.

    Args:
        plugins: Of a strategy.
        buffers: Knows the samples of replay buffers.
        experiences: How many experiences were trained on.

    Raises:
        NoStateError: If one has a state that cannot be taken.
    """
    states = [{"kind": _kind(plugin), "state": _state(plugin, buffers, experiences)} for plugin in plugins]
    buffers.forget_others()
    return states


def load_plugin_states(plugins: Sequence[Any], states: Sequence[dict[str, Any]], buffers: BufferIndex) -> None:
    """Give plugins the states that `plugin_states` returned.

    Raises:
        NoStateError: If there are other plugins.
    """
    kinds = [_kind(plugin) for plugin in plugins]
    if kinds != [state["kind"] for state in states]:
        raise NoStateError("the strategy has other plugins than the saved one")
    for plugin, saved in zip(plugins, states, strict=True):
        state = saved["state"]
        if type(plugin) is ReplayPlugin:
            buffers.load(plugin.storage_policy, state)
        elif _has_state_dict(plugin):
            plugin.load_state_dict(state)
        else:
            vars(plugin).update(state)


def whole_within(plugins: Sequence[Any]) -> bool:
    """Say whether the states are whole in the middle of an experience, too, between two mini-batches.

    Those of this project are, and plain attributes; of others it is known only of their `state_dict` after experiences.
    """
    return all(_is_ours(type(p)) or type(p) is ReplayPlugin or not _has_state_dict(p) for p in plugins)


def _state(plugin: Any, buffers: BufferIndex, experiences: int) -> Any:
    name = type(plugin).__name__
    try:
        if type(plugin) is ReplayPlugin:
            return buffers.state_of(plugin.storage_policy, experiences)
        if _has_state_dict(plugin):
            if not _speaks_for_itself(type(plugin)):
                raise NoStateError(
                    f"{name} inherits state_dict and load_state_dict; give it its own, even if they add nothing"
                )
            return plain(plugin.state_dict(), "its state")
        return plain(dict(vars(plugin)), "its state")
    except (NotPlainError, UnknownBufferError) as error:
        raise NoStateError(f"the state of {name} cannot be saved ({error})") from None


def _speaks_for_itself(kind: type) -> bool:
    """Say whether the classes of others that a plugin is made of say what its state is, if there are any."""
    others = [each for each in kind.__mro__ if not _is_ours(each) and each.__module__.split(".")[0] != "avalanche"]
    own = [each for each in others if each is not object and each.__module__ not in ("typing", "abc")]
    return not own or any("state_dict" in vars(each) and "load_state_dict" in vars(each) for each in own)


def _has_state_dict(plugin: Any) -> bool:
    return hasattr(plugin, "state_dict") and hasattr(plugin, "load_state_dict")


def _is_ours(kind: type) -> bool:
    return kind.__module__.split(".")[0] in _OURS


def _kind(plugin: Any) -> str:
    return f"{type(plugin).__module__}.{type(plugin).__qualname__}"
