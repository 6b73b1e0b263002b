"""A network that is not trained on: what it does in another domain, as it is or with units pruned."""

from typing import Any

from avalanche.training.plugins import SupervisedPlugin

from strategies import Context, register


class HoldPlugin(SupervisedPlugin[Any]):
    """Trains on the first experience only; what other plugins do between experiences is done."""

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Skip all epochs of a later experience."""
        if strategy.experience.current_experience > 0:
            strategy.stop_training()


def _hold(context: Context) -> list[SupervisedPlugin[Any]]:
    return [HoldPlugin()]


register("hold", _hold, "training on the first experience only")
