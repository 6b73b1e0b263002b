"""Learning from a network's own confident predictions: against loops, with no use of labels, and undone each time."""

import math
import pickle

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EWCPlugin, GEMPlugin, SupervisedPlugin
from hyper_hypo_runs import everything, naive, numpy_entropy, run, same, statistics, stream
from torch import nn

from plasticity.errors import UserError
from plasticity.methods.hyper_hypo_spread import SpreadStatistics
from plasticity.methods.hyper_hypo_units import HyperHypoRule, saliency, select_units
from plasticity.methods.self_labels import SelfLabels, confident_predictions
from plasticity.plugins import HyperHypoPlugin


def slow_choice(output: torch.Tensor, share: float) -> tuple[list[int], list[int]]:
    """Sample by sample, in Python's own numbers."""
    margins, predicted = [], []
    for row in output.double().tolist():
        weights = [math.exp(value - max(row)) for value in row]
        ordered = sorted((weight / sum(weights) for weight in weights), reverse=True)
        margins.append(ordered[0] - ordered[1])
        predicted.append(row.index(max(row)))
    number = next(n for n in range(1, len(margins) + 1) if n >= share * len(margins) - 1e-9)
    rows = sorted(sorted(range(len(margins)), key=lambda i: -margins[i])[:number])
    return rows, [predicted[row] for row in rows]


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 1])
@pytest.mark.parametrize("shape", [(1, 2), (7, 3), (32, 10)])
def test_the_most_confident_are_kept(shape: tuple[int, int], share: float) -> None:
    output = torch.randn(shape) * 3
    rows, predicted = confident_predictions(output, share)
    assert (rows.tolist(), predicted.tolist()) == slow_choice(output, share)


def test_of_equals_the_first_are_kept() -> None:
    rows, predicted = confident_predictions(torch.tensor([[0.0, 1.0]]).repeat(5, 1), 0.5)
    assert rows.tolist() == [0, 1, 2] and predicted.tolist() == [1, 1, 1]


def test_the_loss_is_that_of_the_kept_samples_and_its_gradient_reaches_them_alone() -> None:
    output = torch.randn(8, 4, requires_grad=True)
    loss = SelfLabels(nn.CrossEntropyLoss(), 0.5)(output, None)
    rows, predicted = slow_choice(output.detach(), 0.5)
    expected = [-float(output.detach()[r].log_softmax(0)[p]) for r, p in zip(rows, predicted, strict=True)]
    assert float(loss.detach()) == pytest.approx(np.mean(expected), rel=1e-5)
    loss.backward()
    assert output.grad.abs().sum(1).nonzero().flatten().tolist() == rows


@pytest.mark.parametrize("shape", [(4, 1), (4,), (4, 3, 2)])
def test_outputs_without_classes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="logits of at least two classes"):
        confident_predictions(torch.randn(shape))


def test_nothing_waits_for_the_device() -> None:
    output = torch.empty(6, 3, device="meta")
    rows, predicted = confident_predictions(output)
    assert rows.shape == predicted.shape == (3,)


# --- in a strategy ---------------------------------------------------------------------------------------------


class WrongLabels(SupervisedPlugin):
    """Puts other labels into the mini-batches in chosen iterations of every experience but the first."""

    def __init__(self, iterations: range) -> None:
        super().__init__()
        self.iterations, self.step = iterations, 0

    def before_training_exp(self, strategy, **kwargs) -> None:
        self.step = 0

    def before_training_iteration(self, strategy, **kwargs) -> None:
        if strategy.experience.current_experience and self.step in self.iterations:
            classes = strategy.experience.classes_in_this_experience
            strategy.mbatch[1] = sum(classes) - strategy.mb_y  # the other one of two
        self.step += 1


def trained(arguments: dict, wrong: range = range(0), more: tuple = (), network: str = "mlp", epochs: int = 5):
    """Three experiences; each but the first has 15 mini-batches, of which the stage takes 3."""
    plugin = HyperHypoPlugin(percent=10, **arguments)
    strategy = naive(network, [*more, plugin, WrongLabels(wrong)], epochs=epochs)
    criterion = strategy._criterion
    for experience in stream(network):
        strategy.train(experience)
    assert strategy._criterion is criterion
    return strategy, plugin


@pytest.mark.parametrize("network", ["mlp", "convolutional", "multi_head"])
def test_no_label_is_used_in_the_stage_and_all_are_after_it(network: str) -> None:
    plain, plugin = trained({"self_label": True}, network=network)
    assert [entry["self_labelled"] for entry in plugin.history] == [3, 3]
    assert same(everything(plain), everything(trained({"self_label": True}, range(3), network=network)[0]))
    assert not same(everything(plain), everything(trained({"self_label": True}, range(3, 4), network=network)[0]))
    labelled, _ = trained({}, network=network)
    assert not same(everything(labelled), everything(trained({}, range(3), network=network)[0]))
    assert not same(everything(labelled), everything(plain))


@pytest.mark.parametrize("arguments", [{}, {"mode": "prune"}, {"percent": 0}, {"adapt_share": 0}])
def test_no_label_is_used_after_the_first_experience(arguments: dict) -> None:
    arguments = {"self_label": "all", **arguments}
    percent = arguments.pop("percent", 10)
    runs = []
    for wrong in (range(0), range(15)):
        plugin = HyperHypoPlugin(percent=percent, **arguments)
        strategy = run("mlp", [plugin, WrongLabels(wrong)])
        assert [entry["self_labelled"] for entry in plugin.history] == [15, 15]
        runs.append(everything(strategy))
    assert same(*runs)


def test_without_chosen_units_only_all_learns_without_labels() -> None:
    """With no unit at either end there is no stage, and `True` is then bit-identical to no plugin."""
    treated = run("mlp", [HyperHypoPlugin(percent=0, self_label=True)], epochs=1)
    assert same(everything(treated), everything(run("mlp", [], epochs=1)))


def test_the_update_is_that_of_a_hand_written_loop() -> None:
    """One experience with labels, then two mini-batches without: SGD by hand, on the same mini-batches."""
    seen = []

    class Look(SupervisedPlugin):
        def before_training_iteration(self, strategy, **kwargs) -> None:
            if strategy.experience.current_experience == 1:
                seen.append((strategy.mb_x.clone(), {n: p.clone() for n, p in strategy.model.named_parameters()}))

    plugin = HyperHypoPlugin(percent=0, self_label="all", confident_share=0.25)
    strategy = naive("growing", [plugin, Look()], kind="sgd", epochs=1)
    for group in strategy.optimizer.param_groups:
        group.update(momentum=0, weight_decay=0)
    for experience in stream("growing", 2):
        strategy.train(experience)
    model = strategy.model
    for (x, before), (_, after) in zip(seen, seen[1:], strict=False):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(before[name])
        model.train()
        model.zero_grad()
        output = model(x)
        rows, predicted = slow_choice(output.detach(), 0.25)
        nn.functional.cross_entropy(output[rows], torch.tensor(predicted)).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(after[name], parameter.detach() - 0.02 * parameter.grad)
    assert len(seen) == 3


def test_metrics_and_other_plugins_still_get_labels() -> None:
    """GEM and EWC call the criterion themselves, on samples of their own; what they get must be the true one."""
    asked = []

    class Counting(nn.CrossEntropyLoss):
        def forward(self, output, labels):
            asked.append((len(output), labels.clone()))
            return super().forward(output, labels)

    class Look(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs) -> None:
            assert isinstance(strategy._criterion, Counting)
            assert len(strategy.mb_y) == len(strategy.mb_output) == 16

    plugin = HyperHypoPlugin(percent=10, self_label="all")
    strategy = naive("mlp", [EWCPlugin(0.1), GEMPlugin(8, 0.5), plugin, Look()], epochs=1)
    strategy._criterion = Counting()
    for experience in stream("mlp", 2):
        strategy.train(experience)
    assert [entry["self_labelled"] for entry in plugin.history] == [3]
    sizes = [size for size, _ in asked]
    assert sizes.count(8) >= 6  # half of 16, and GEM's memory of 8
    importances = asked[-1]
    assert set(importances[1].tolist()) <= {2, 3}


def test_a_strategy_that_computes_its_loss_otherwise_is_refused() -> None:
    plugin = HyperHypoPlugin(percent=10, self_label=True)
    strategy = naive("mlp", [plugin], epochs=1)
    strategy.criterion = lambda: nn.functional.cross_entropy(strategy.mb_output, strategy.mb_y)
    first, second, _ = stream("mlp")
    strategy.train(first)
    with pytest.raises(UserError, match="Naive does not compute its loss by its criterion"):
        strategy.train(second)


@pytest.mark.parametrize("self_label", [True, "all"])
def test_state_goes_on_where_it_stopped(self_label) -> None:
    runs = []
    for interrupted in (False, True):
        plugin = HyperHypoPlugin(percent=10, self_label=self_label)
        strategy = naive("mlp", [plugin], epochs=2)
        for number, experience in enumerate(stream("mlp")):
            if number == 2 and interrupted:
                resumed = HyperHypoPlugin(percent=10, self_label=self_label, seed=9)
                resumed.load_state_dict(plugin.state_dict())
                strategy.plugins[strategy.plugins.index(plugin)] = plugin = pickle.loads(pickle.dumps(resumed))
            strategy.train(experience)
        runs.append((everything(strategy), plugin.history))
    assert same(runs[0][0], runs[1][0]) and runs[0][1] == runs[1][1]


# --- saliencies of units that vary -----------------------------------------------------------------------------


def test_units_are_chosen_by_how_much_they_vary() -> None:
    std, entropy = torch.tensor([0.0, 3.0, 1.0, 2.0]).double(), torch.tensor([2.0, 0.0, 1.0, math.nan]).double()
    nothing = torch.zeros(4).double()
    stats = {"a": SpreadStatistics(nothing.long(), 5, nothing, nothing, std, entropy)}
    for kind, hyper, hypo in (("std", [1], [0]), ("entropy", [0], [1])):
        found = select_units(stats, HyperHypoRule(saliency=kind, percent=25), torch.Generator())["a"]
        assert (found.hyper.tolist(), found.hypo.tolist()) == (hyper, hypo)
    found = select_units(stats, HyperHypoRule(saliency="std", select="bounds", low=1, high=3), torch.Generator())["a"]
    assert (found.hyper.tolist(), found.hypo.tolist()) == ([1], [0, 2])
    with pytest.raises(UserError, match="spread_statistics"):
        saliency(statistics([1, 2], 4), "std")


@pytest.mark.parametrize("kind", ["std", "entropy"])
@pytest.mark.parametrize("mode", ["adapt", "prune"])
def test_plugins_choose_by_spread(kind: str, mode: str) -> None:
    plugin = HyperHypoPlugin(mode, saliency=kind, percent=10)
    inputs = []

    class Look(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs) -> None:
            if strategy.experience.current_experience == 1:
                strategy.model.eval()
                h = strategy.model[:2](torch.cat(inputs)[-48:]).detach().double()
                scores = h.std(0) if kind == "std" else torch.tensor([numpy_entropy(row) for row in h.T.numpy()])
                order = scores.argsort(descending=True, stable=True).tolist()
                self.ends = set(order[:2]), set(scores.argsort(stable=True).tolist()[:2])
                strategy.model.train()

        def after_forward(self, strategy, **kwargs) -> None:
            inputs.append(strategy.mb_x.clone())

    look = Look()
    strategy = naive("mlp", [look, plugin], epochs=2)
    for experience in stream("mlp", 2):
        strategy.train(experience)
    assert (set(plugin.selections["0"].hyper.tolist()), set(plugin.selections["0"].hypo.tolist())) == look.ends
    assert plugin.history[0]["units"]["0"] == sorted(look.ends[0] | look.ends[1])
