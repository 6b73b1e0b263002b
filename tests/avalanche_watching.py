"""What is looked at while a strategy of Avalanche's trains: its own passes, and whether what plugins promise holds."""

import random

import numpy as np
import torch
from avalanche.training.plugins import LFLPlugin, LwFPlugin, SupervisedPlugin

from plasticity.architecture.injected import Injection
from plasticity.plugins.removed import removed_by
from plasticity.probe import Probe
from plasticity.watching.activity import Activity


class SameRandomness(SupervisedPlugin):
    """Gives back the random state that an evaluation has taken: its data loaders draw a number each."""

    def before_eval(self, strategy, **kwargs):
        self.states = torch.get_rng_state(), random.getstate(), np.random.get_state()

    def after_eval(self, strategy, **kwargs):
        torch.set_rng_state(self.states[0])
        random.setstate(self.states[1])
        np.random.set_state(self.states[2])


class OwnPasses:
    """Counts passes of the model by `strategy.forward` in training, and which watched passes were others."""

    def __init__(self, monkeypatch):
        self.inside = self.probing = False
        self.own = self.watched = 0
        self.others = []
        patch = monkeypatch.setattr
        enter, run = Activity._entered, Probe._run

        def entered(activity):
            looks = enter(activity)
            if looks and self.inside:
                self.watched += 1
            elif looks and not self.probing:
                self.others.append(activity.model)
            return looks

        def ran(probe, model):
            self.probing = True
            try:
                return run(probe, model)
            finally:
                self.probing = False

        patch(Activity, "_entered", entered)
        patch(Probe, "_run", ran)
        self.patch = patch

    def of(self, strategy):
        kind = type(strategy)
        forward = kind.forward

        def counted(this):
            self.inside = this.is_training
            self.own += this.is_training
            try:
                return forward(this)
            finally:
                self.inside = False

        self.patch(kind, "forward", counted)
        return strategy


class Holds(SupervisedPlugin):
    """Stands last, and looks whether what plugins promise is true whatever the strategy does."""

    def __init__(self, plugin):
        super().__init__()
        self.plugin, self.inputs, self.looked = plugin, [], 0
        self.head = self.teacher = None

    def before_forward(self, strategy, **kwargs):
        for removed in removed_by(strategy):
            assert not removed.disturbed(strategy.model)
            self.looked += 1

    before_eval_forward = before_forward

    def after_forward(self, strategy, **kwargs):
        self.inputs.append(strategy.mb_x)

    def before_update(self, strategy, **kwargs):
        alone = getattr(self.plugin, "_stage", None) is not None
        self.head = [value.clone() for value in strategy.model.parameters()][-2:] if alone else None

    def after_update(self, strategy, **kwargs):
        assert all(bool(torch.isfinite(value).all()) for value in strategy.model.parameters())
        if self.head is not None:  # other units learn alone
            last = list(strategy.model.parameters())[-2:]
            assert all(torch.equal(before, now) for before, now in zip(self.head, last, strict=True))
            self.looked += 1

    def before_training_exp(self, strategy, **kwargs):
        self._look_at_teacher(strategy)

    def after_training_exp(self, strategy, **kwargs):
        self._look_at_teacher(strategy)
        teacher = self._teacher(strategy)
        self.teacher = None if teacher is None else (teacher, [v.clone() for v in teacher.state_dict().values()])

    def _teacher(self, strategy):
        for plugin in strategy.plugins:
            if isinstance(plugin, LFLPlugin):
                return plugin.prev_model
            if isinstance(plugin, LwFPlugin):
                return plugin.lwf.prev_model
        return None

    def _look_at_teacher(self, strategy):
        if self.teacher is not None and self._teacher(strategy) is self.teacher[0]:
            now = self.teacher[0].state_dict().values()
            assert all(torch.equal(one, other) for one, other in zip(self.teacher[1], now, strict=True))
            assert not left_hooks(self.teacher[0])


def left_hooks(model):
    """The hooks that are on a model, but for those of plasticity injection."""
    heads = [part for module in model.modules() if isinstance(module, Injection) for part in module._head]
    return [
        hook
        for module in model.modules()
        if module not in heads
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ] + [name for name, module in model.named_modules() if "_compiled_call_impl" in vars(module)]
