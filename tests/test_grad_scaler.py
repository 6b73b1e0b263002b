"""Strategies of a user's own that scale their loss, leave updates out, clip or accumulate gradients."""

import pytest
import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from exclusion_cases import EXPERIENCES, MAKE
from stripping_streams import FixedHead, Recorder, everything, same, stream
from torch import nn

from plasticity import find_units, measures, plugins, watch_gradients
from plasticity.errors import UserError
from plasticity.metrics import plasticity_metrics
from plasticity.optim import UPGD
from plasticity.surgery import reinitialise, silence

OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "upgd": lambda p: UPGD(p, lr=0.05),
}


class Scaled(Naive):
    """As PyTorch's documentation has it, with clipping."""

    scaler, clip = None, None

    def backward(self):
        self.scaler.scale(self.loss).backward()

    def optimizer_step(self):
        if self.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()


class Plain(Naive):
    """The same without a scale: it leaves out the updates of some iterations."""

    left_out, clip = (), None

    def optimizer_step(self):
        if self.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        if self.clock.train_iterations not in self.left_out:
            self.optimizer.step()


class Overflows(SupervisedPlugin):
    """Makes the gradients of some iterations infinite, as they are after too large a scale."""

    def __init__(self, iterations):
        super().__init__()
        self.iterations = iterations

    def before_update(self, strategy, **kwargs):
        if strategy.clock.train_iterations in self.iterations:
            for parameter in strategy.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(float("inf"))


def trained(kind, plugin, optimizer="adam", left_out=(), clip=None, scale=2.0**12, more=(), experiences=3):
    torch.manual_seed(0)
    model = FixedHead()
    strategy = kind(
        model=model,
        optimizer=OPTIMIZERS[optimizer](model.parameters()),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        train_epochs=2,
        plugins=[*more, *([plugin] if plugin else []), *([Overflows(left_out)] if kind is Scaled else [])],
        evaluator=EvaluationPlugin(loggers=[Recorder()]),
    )
    strategy.clip, strategy.left_out = clip, left_out
    strategy.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    torch.manual_seed(1)
    for experience in EXPERIENCES.train_stream[:experiences]:
        strategy.train(experience)
    return strategy


def plain_history(plugin):
    return [{key: value for key, value in entry.items() if key != "penalty"} for entry in plugin.history]


def test_upgd_sees_gradients_without_a_scale():
    left_out = (3, 4)
    plain = trained(Plain, None, "upgd", left_out=left_out)
    assert same(everything(plain), everything(trained(Scaled, None, "upgd", left_out=left_out)))


CASES = [(name, "adam") for name in MAKE] + [(name, "sgd") for name in ("L2Plugin", "DemonPruningPlugin")]


@pytest.mark.parametrize(("name", "optimizer"), CASES)
def test_a_scaled_loss_gives_the_same_run_bit_for_bit(name, optimizer):
    """A scale that is a power of two is taken out of gradients without rounding."""
    one, other = MAKE[name](), MAKE[name]()
    assert same(everything(trained(Plain, one, optimizer)), everything(trained(Scaled, other, optimizer)))
    assert one.history == other.history and one.history
    if name in ("L2Plugin", "DemonPruningPlugin", "GradientDormancyPlugin"):
        assert not same(
            everything(trained(Plain, None, optimizer)), everything(trained(Plain, MAKE[name](), optimizer))
        )


@pytest.mark.parametrize("name", MAKE)
def test_updates_that_the_scaler_leaves_out_are_left_out_and_nothing_else(name):
    """Masks, frozen rows, averages and ages are as if an optimizer had passed over these updates by itself."""
    left_out = (1, 7, 8)
    one, other = MAKE[name](), MAKE[name]()
    plain, scaled = trained(Plain, one, left_out=left_out), trained(Scaled, other, left_out=left_out)
    assert scaled.scaler.get_scale() == 2.0**9
    assert same(everything(plain), everything(scaled)) and one.history == other.history


class Kept(SupervisedPlugin):
    """Looks whether what is removed, or frozen, stays so through every update."""

    def __init__(self, plugin):
        super().__init__()
        self.plugin, self.removed, self.frozen = plugin, 0, 0

    def before_training_iteration(self, strategy, **kwargs):
        self.before = {name: each.detach().clone() for name, each in strategy.model.named_parameters()}

    def after_update(self, strategy, **kwargs):
        stage = getattr(self.plugin, "_stage", None)
        for name, each in strategy.model.named_parameters() if stage is not None else ():
            chosen = self.plugin._entries.get(name, torch.zeros_like(each, dtype=torch.bool))
            assert torch.equal(each[~chosen], self.before[name][~chosen])
            self.frozen += 1
        for name in getattr(self.plugin, "masks", ()):
            weight = strategy.model.get_submodule(name).weight
            assert not weight[~self.plugin.masks.kept(strategy.model, name)].any()
            self.removed += 1


@pytest.mark.parametrize("name", ["SynapticStrippingPlugin", "HyperHypoPlugin", "HyperHypoPlugin, prune"])
def test_masks_and_frozen_rows_hold_through_overflows(name):
    plugin = MAKE[name]()
    kept = Kept(plugin)
    strategy = trained(Scaled, plugin, left_out=(6, 7, 9, 13), more=(kept,))
    assert kept.frozen if name == "HyperHypoPlugin" else kept.removed
    assert all(bool(each.isfinite().all()) for each in everything(strategy))


@pytest.mark.parametrize("name", ["L2Plugin", "L2InitPlugin", "SpectralRegularizationPlugin", "DemonPruningPlugin"])
def test_penalties_come_before_clipping_whatever_the_scale(name):
    one, other = MAKE[name](), MAKE[name]()
    plain, scaled = trained(Plain, one, "sgd", clip=0.1), trained(Scaled, other, "sgd", clip=0.1)
    assert same(everything(plain), everything(scaled))
    assert not same(everything(plain), everything(trained(Plain, MAKE[name](), "sgd")))


class TooEarly(Scaled):
    def backward(self):
        super().backward()
        self.scaler.unscale_(self.optimizer)


@pytest.mark.parametrize("name", ["L2Plugin", "L2InitPlugin", "SpectralRegularizationPlugin", "DemonPruningPlugin"])
def test_gradients_that_lose_their_scale_too_early_are_refused(name):
    with pytest.raises(UserError, match=r"call scaler.unscale_\(\) later, in the strategy's optimizer_step"):
        trained(TooEarly, MAKE[name]())


def test_gradient_dormancy_passes_over_mini_batches_that_overflowed():
    """Their gradients say nothing; the others weigh alike, whatever the scale was."""
    plugin = plugins.GradientDormancyPlugin(every=6, batches=6, tau=0.5)

    class Bad(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            if strategy.clock.train_iterations in (1, 4):
                strategy.loss = strategy.loss * float("inf")

    one = plugins.GradientDormancyPlugin(every=6, batches=6, tau=0.5)
    strategy = trained(Scaled, one, "sgd", more=(Bad(),), experiences=1)
    assert one.history[0]["samples"] == 8 * 4 and "withheld" not in one.history[0]
    assert all(bool(each.isfinite().all()) for each in everything(strategy))
    assert plugin.history == []

    class AllBad(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            strategy.loss = strategy.loss * float("inf")

        def after_backward(self, strategy, **kwargs):
            strategy.loss = torch.zeros(1)

    with pytest.warns(UserWarning, match="all gradients of the latest 6 mini-batches are NaN or infinite"):
        trained(Scaled, plugin, "sgd", more=(AllBad(),), experiences=1)
    assert "withheld" in plugin.history[0]


class UnscalesBefore(SupervisedPlugin):
    def before_update(self, strategy, **kwargs):
        strategy.scaler.unscale_(strategy.optimizer)


def measured(kind, more=()):
    """Values of two metrics of gradients, by name."""
    torch.manual_seed(0)
    model, recorder = FixedHead(), Recorder()
    metrics = plasticity_metrics(epoch=True, minibatch=True, measures=["GradientNorm", "NotLearningUnits"])
    strategy = kind(
        model=model,
        optimizer=OPTIMIZERS["adam"](model.parameters()),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        plugins=list(more),
        evaluator=EvaluationPlugin(metrics, loggers=[recorder]),
    )
    strategy.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    torch.manual_seed(1)
    strategy.train(EXPERIENCES.train_stream[0])
    return {(value.name, value.x_plot): value.value for value in recorder.values}


def test_norms_of_gradients_are_without_the_scale_or_refused():
    plain = measured(Plain)
    assert plain == measured(Scaled, [UnscalesBefore()]) and any("NotLearning" in name for name, _ in plain)
    with pytest.raises(UserError, match="GradientNorm would be that of scaled gradients"):
        measured(Scaled)


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_of_units_are_exactly_zero_whatever_the_scale(fused):
    """A fused optimizer takes the scale out by itself, and steps over nothing without being called."""
    seen = []
    for scale in (None, 2.0**12):
        torch.manual_seed(0)
        model, x = FixedHead(), torch.rand(8, 8)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        with watch_gradients(model, find_units(model, x[:2]), optimizer) as gradients:
            for _ in range(4):
                optimizer.zero_grad()
                scaler.scale(nn.functional.cross_entropy(model(x), torch.arange(8) % 6)).backward()
                scaler.step(optimizer)
                scaler.update()
        seen.append({name: measures.not_learning_units(each) for name, each in gradients.statistics().items()})
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0]) and bool(seen[0]["features.0"].any())


# --- gradient accumulation -------------------------------------------------------------------------------------------


class Accumulating(Naive):
    """Updates after every second mini-batch, by the mean of their gradients."""

    parts = 0

    def backward(self):
        (self.loss / 2).backward()

    def optimizer_step(self):
        self.parts += 1
        if self.parts % 2 == 0:
            self.optimizer.step()
            self.clear()


def accumulated(kind, plugin, size):
    torch.manual_seed(0)
    model = FixedHead()
    strategy = kind(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=size,
        train_epochs=2,
        plugins=[plugin],
        evaluator=EvaluationPlugin(loggers=[Recorder()]),
    )
    if kind is Accumulating:  # Avalanche's loop clears gradients in every iteration
        strategy.clear, strategy.optimizer.zero_grad = strategy.optimizer.zero_grad, lambda: None
    for experience in stream(size=32).train_stream[:2]:
        strategy.train(experience, shuffle=False)
    return strategy


@pytest.mark.parametrize(
    "name", ["L2Plugin", "L2InitPlugin", "SpectralRegularizationPlugin", "SynapticStrippingPlugin", "FIREPlugin"]
)
def test_accumulated_gradients_give_the_run_of_mini_batches_of_twice_the_size(name):
    gentle = {"SpectralRegularizationPlugin": lambda: plugins.SpectralRegularizationPlugin(0.01, biases=False)}
    make = gentle.get(name, MAKE[name])
    whole, halves = accumulated(Naive, make(), 16), accumulated(Accumulating, make(), 8)
    assert halves.parts == 2 * 2 * 4
    tolerance = 1e-4 if name != "SpectralRegularizationPlugin" else 5e-3  # its singular vectors take twice the steps
    for one, other in zip(everything(whole), everything(halves), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_a_new_unit_does_not_learn_from_gradients_of_the_one_before():
    """They are added up still when a unit is made new between two updates."""
    model = nn.Sequential(nn.Conv1d(2, 4, 1), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
    units = find_units(model, torch.randn(4, 2, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(8, 2, 3)).square().sum().backward()
    before = {name: each.grad.clone() for name, each in model.named_parameters()}
    reinitialise(model, units["0"], [1], optimizer)
    for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
        gradient = model.get_parameter(name).grad
        assert not gradient[1].any() and torch.equal(gradient[[0, 2, 3]], before[name][[0, 2, 3]])
        assert before[name][1].any()
    outgoing = model[4].weight.grad
    assert not outgoing[:, 3:6].any() and torch.equal(outgoing[:, 6:], before["4.weight"][:, 6:])
    silence(model, units["0"], [2], optimizer)
    assert not model[4].weight.grad[:, 3:9].any() and torch.equal(model[4].bias.grad, before["4.bias"])
