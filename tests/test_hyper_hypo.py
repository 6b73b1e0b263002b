"""Hyper- and hypo-units: selection against numpy, adaptation and pruning step by step in Avalanche's Naive."""

import copy
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.models import IncrementalClassifier, MTSimpleMLP, avalanche_forward
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, GEMPlugin, SupervisedPlugin
from torch import nn
from torch.utils.data import TensorDataset

from plasticity import find_units
from plasticity.activity import UnitStatistics
from plasticity.errors import UserError
from plasticity.groups import UnitGroup, UnitGroups, Write
from plasticity.masks import Masks
from plasticity.methods.hyper_hypo import (
    HyperHypoRule,
    Selection,
    choose_entries,
    incoming_entries,
    keep_pruned,
    prune_units,
    saliency,
    select_units,
)
from plasticity.plugins import HyperHypoPlugin, SynapticStrippingPlugin
from plasticity.probe import Probe

SAMPLES, BATCH = 48, 16


# --- saliency and selection against numpy ----------------------------------------------------------------------


def statistics(fired: list[int], count: int, mean_abs: list[float] | None = None) -> UnitStatistics:
    magnitude = torch.tensor(mean_abs if mean_abs is not None else [0.0] * len(fired), dtype=torch.float64)
    return UnitStatistics(torch.tensor(fired), count, magnitude, magnitude)


def numpy_ends(score: np.ndarray, candidates: list[int], percent: float) -> tuple[list[int], list[int]]:
    """Top and bottom units one at a time, the first of equals."""
    number = (
        0 if percent == 0 else min(max(1, int(np.floor(len(candidates) * percent / 100 + 0.5))), len(candidates) // 2)
    )
    hyper: list[int] = []
    hypo: list[int] = []
    for _ in range(number):
        hyper.append(max((u for u in candidates if u not in hyper), key=lambda u: (score[u], -u)))
    for _ in range(number):
        hypo.append(min((u for u in candidates if u not in hyper + hypo), key=lambda u: (score[u], u)))
    return hyper, hypo


def choose(stats: dict[str, UnitStatistics], rule: HyperHypoRule, seed: int = 0, without=None):
    return select_units(stats, rule, torch.Generator().manual_seed(seed), without)


@pytest.mark.parametrize("percent", [0, 0.1, 5, 12.5, 33, 50])
@pytest.mark.parametrize("kind", ["frequency", "mean_abs"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 30, 100])
def test_percentiles_agree_with_numpy_also_among_equals(size: int, kind: str, percent: float) -> None:
    generator = np.random.default_rng(size)
    fired = generator.integers(0, 6, size)  # few values, so that many are equal
    magnitude = generator.integers(0, 6, size) / 4
    gone = generator.random(size) < 0.2
    stats = {"a": statistics(fired.tolist(), 5, magnitude.tolist())}
    found = choose(stats, HyperHypoRule(saliency=kind, percent=percent), without={"a": torch.tensor(gone)})["a"]
    left = [unit for unit in range(size) if not gone[unit]]
    mean = magnitude[~gone].mean() if left else 0
    score = fired / 5 if kind == "frequency" else magnitude / mean if mean > 0 else np.zeros(size)
    hyper, hypo = numpy_ends(score, left, percent)
    assert found.hyper.tolist() == hyper and found.hypo.tolist() == hypo
    assert found.chosen.tolist() == hyper + hypo
    assert len(set(hyper + hypo)) == len(hyper + hypo) and (percent == 0 or len(left) < 2 or hyper)


def test_saliency_is_what_its_docstring_says() -> None:
    stat = statistics([0, 19, 20], 20, [0.0, 1.0, 5.0])
    assert saliency(stat).tolist() == [0, 0.95, 1]
    assert saliency(stat, "mean_abs").tolist() == [0, 0.5, 2.5]
    assert saliency(stat, "mean_abs", torch.tensor([False, True, True])).tolist() == [0, 1 / 3, 5 / 3]
    assert saliency(statistics([0, 0], 4, [0.0, 0.0]), "mean_abs").tolist() == [0, 0]
    broken = saliency(statistics([1, 1, 1], 4, [1.0, math.inf, 3.0]), "mean_abs")
    assert broken[[0, 2]].tolist() == [0.5, 1.5] and broken[1].isnan()
    chosen = choose({"a": statistics([1, 1, 1], 4, [1.0, math.nan, 3.0])}, HyperHypoRule(saliency="mean_abs"))["a"]
    assert chosen.hyper.tolist() == [2] and chosen.hypo.tolist() == [0]


def test_bounds_take_what_is_at_them_or_beyond() -> None:
    stats = {"a": statistics([0, 1, 2, 10, 19, 20, 20], 20), "b": statistics([10, 11], 20)}
    found = choose(stats, HyperHypoRule(select="bounds"))
    assert found["a"].hyper.tolist() == [5, 6, 4] and found["a"].hypo.tolist() == [0, 1]
    assert found["b"].chosen.tolist() == []
    found = choose(stats, HyperHypoRule(select="bounds", low=0.1, high=1.0))
    assert found["a"].hyper.tolist() == [5, 6] and found["a"].hypo.tolist() == [0, 1, 2]
    magnitudes = {"a": statistics([0] * 4, 1, [0.0, 1.0, 1.0, 6.0])}
    found = choose(magnitudes, HyperHypoRule(saliency="mean_abs", select="bounds", low=0.1, high=3.0))
    assert found["a"].hyper.tolist() == [3] and found["a"].hypo.tolist() == [0]


def test_either_end_and_a_random_choice_of_the_same_size() -> None:
    stats = {"a": statistics(list(range(60)), 60), "b": statistics(list(range(20)), 60), "c": statistics([0, 0], 0)}
    both = choose(stats, HyperHypoRule(percent=10))
    assert set(both) == {"a", "b"}  # what was not observed is not judged
    assert choose(stats, HyperHypoRule(percent=10, units="hyper"))["a"].chosen.tolist() == list(range(59, 53, -1))
    assert choose(stats, HyperHypoRule(percent=10, units="hypo"))["a"].chosen.tolist() == list(range(6))
    rule = HyperHypoRule(percent=10, units="random")
    drawn, again, other = choose(stats, rule), choose(stats, rule), choose(stats, rule, seed=1)
    for name in both:
        assert len(set(drawn[name].chosen.tolist())) == len(both[name].chosen)
        assert drawn[name].chosen.tolist() == again[name].chosen.tolist()
        assert drawn[name].hyper.tolist() == both[name].hyper.tolist()
    assert set(drawn["a"].chosen.tolist()) != set(both["a"].chosen.tolist())
    assert drawn["a"].chosen.tolist() != other["a"].chosen.tolist()
    gone = torch.zeros(60, dtype=torch.bool)
    gone[10:] = True
    few = choose(stats, HyperHypoRule(percent=50, units="random"), without={"a": gone})
    assert sorted(few["a"].chosen.tolist()) == list(range(10))
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    select_units(stats, HyperHypoRule(percent=0, units="random"), generator)
    assert torch.equal(generator.get_state(), state)


# --- networks and streams --------------------------------------------------------------------------------------


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Dropout(0.1), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 12))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 10, 3, padding=1, bias=False),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(10, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(8 * 4, 12),
        nn.ReLU(),
        nn.Linear(12, 6),
    )


def growing() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 20), nn.BatchNorm1d(20), nn.ReLU(), IncrementalClassifier(20))


def multi_head() -> nn.Module:
    return MTSimpleMLP(input_size=8, hidden_size=20)


# Model, shape of its input, where to see the units of which layer.
NETWORKS = {
    "mlp": (mlp, (8,), {"0": "1", "3": "4"}),
    "convolutional": (convolutional, (1, 4, 4), {"0": "2", "4": "6", "9": "10"}),
    "growing": (growing, (8,), {"0": "2"}),
    "multi_head": (multi_head, (8,), {"features.0": "features.1"}),
}


class Labelled(TensorDataset):
    """Tensors with the attribute by which Avalanche splits them."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        super().__init__(x, y)
        self.targets = y.tolist()


def stream(network: str, experiences: int = 3):
    """Experiences of two classes each; a network with several heads gets task labels."""
    shape = NETWORKS[network][1]
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(2 * experiences).repeat_interleave(SAMPLES // 2)
    x = torch.randn(len(y), *shape, generator=generator) + y.view(-1, *[1] * len(shape)) / 3
    return nc_benchmark(
        Labelled(x, y), Labelled(x, y), experiences, task_labels=network == "multi_head", shuffle=False
    ).train_stream


def make_optimizer(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=0.05)
    made = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
    return made(model.parameters(), lr=0.01, weight_decay=0.05)


def naive(network: str, plugins, kind: str = "adam", epochs: int = 5, seed: int = 0, **arguments):
    torch.manual_seed(seed)
    model = NETWORKS[network][0]()
    return Naive(
        model=model,
        optimizer=make_optimizer(kind, model),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=BATCH,
        train_epochs=epochs,
        plugins=plugins,
        **{"evaluator": None, **arguments},
    )


def run(network: str, plugins, experiences: int = 3, **arguments) -> Naive:
    strategy = naive(network, plugins, **arguments)
    for experience in stream(network, experiences):
        strategy.train(experience)
    return strategy


def everything(strategy: Naive) -> dict[str, torch.Tensor]:
    """Every parameter, buffer and state tensor, by a readable name."""
    found = {name: tensor.detach().clone() for name, tensor in strategy.model.state_dict().items()}
    for name, parameter in strategy.model.named_parameters():
        for key, value in strategy.optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                found[f"{name} {key}"] = value.clone()
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def shares(strategy: Naive, network: str, inputs: list[tuple]) -> dict[str, np.ndarray]:
    """How often each unit fires on some inputs in eval mode, by layer, in numpy."""
    model = copy.deepcopy(strategy.model).eval()
    seen: dict[str, list[np.ndarray]] = {}

    def watch(layer: str):
        def hook(module: nn.Module, args: object, output: torch.Tensor) -> None:
            seen.setdefault(layer, []).append(np.moveaxis(output.detach().numpy(), 1, -1).copy())

        return hook

    for layer, place in NETWORKS[network][2].items():
        model.get_submodule(place).register_forward_hook(watch(layer))
    for x, task in inputs:
        avalanche_forward(model, x, task)
    together = {
        layer: np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts]) for layer, parts in seen.items()
    }
    return {layer: (h > 0).sum(0) / len(h) for layer, h in together.items()}


def numpy_update(kind: str, p, g, m, v, t):
    """One update of SGD with momentum, Adam or AdamW as `make_optimizer` sets them; returns p, m, v."""
    if kind == "sgd":
        m = 0.9 * m + g + 0.05 * p
        return p - 0.02 * m, m, v
    if kind == "adam":
        g = g + 0.05 * p
    else:
        p = p - 0.01 * 0.05 * p
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    return p - 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8), m, v


class Audit(SupervisedPlugin):
    """Checks every update of a run with `HyperHypoPlugin`, which stands before it."""

    def __init__(self, network: str, kind: str, partial_steps: int, percent: float = 10.0) -> None:
        super().__init__()
        self.network, self.kind, self.partial_steps, self.percent = network, kind, partial_steps, percent
        self.inputs: list[tuple] = []
        self.rows: dict[str, list[int]] = {}
        self.step = 0
        self.checked = [0, 0]

    def before_training_exp(self, strategy, **kwargs) -> None:
        self.step = 0
        self.rows = {}
        if self.inputs:
            for layer, share in shares(strategy, self.network, self.inputs[-SAMPLES // BATCH :]).items():
                hyper, hypo = numpy_ends(share, list(range(len(share))), self.percent)
                self.rows[layer] = sorted(hyper + hypo)
            self.buffers = {name: value.clone() for name, value in strategy.model.named_buffers()}
        self.inputs = []

    @property
    def partial(self) -> bool:
        return bool(self.rows) and self.step < self.partial_steps

    def after_forward(self, strategy, **kwargs) -> None:
        self.inputs.append((strategy.mb_x.clone(), strategy.mb_task_id.clone()))
        if self.partial:
            still = copy.deepcopy(strategy.model).eval()
            torch.testing.assert_close(strategy.mb_output, avalanche_forward(still, strategy.mb_x, strategy.mb_task_id))

    def before_update(self, strategy, **kwargs) -> None:
        self.before = everything(strategy)
        self.gradients = {n: p.grad.numpy().copy() for n, p in strategy.model.named_parameters() if p.grad is not None}

    def after_update(self, strategy, **kwargs) -> None:
        after = everything(strategy)
        first, second = ("momentum_buffer", "none") if self.kind == "sgd" else ("exp_avg", "exp_avg_sq")
        learning = 0
        for name, parameter in strategy.model.named_parameters():
            layer = name.rpartition(".")[0]
            rows = self.rows.get(layer, []) if self.partial else list(range(len(parameter)))
            rest = [row for row in range(len(parameter)) if row not in rows]
            keys = [key for key in after if key.split(" ")[0] == name]
            if self.partial and not rows or name not in self.gradients:
                assert keys == [key for key in self.before if key.split(" ")[0] == name]
                assert all(torch.equal(after[key], self.before[key]) for key in keys), name
                continue
            learning += 1
            zero = torch.zeros_like(parameter)
            for key in keys:
                if after[key].dim():
                    assert torch.equal(after[key][rest], self.before.get(key, zero)[rest]), key
            p, m, v = (self.before.get(k, zero).double().numpy() for k in (name, f"{name} {first}", f"{name} {second}"))
            steps = float(self.before.get(f"{name} step", torch.zeros(()))) + 1
            wanted = numpy_update(self.kind, p, self.gradients[name].astype(float), m, v, steps)
            for key, value in zip((name, f"{name} {first}", f"{name} {second}"), wanted, strict=True):
                if key in after:
                    np.testing.assert_allclose(after[key].numpy()[rows], value[rows], rtol=2e-4, atol=1e-6)
        if self.partial:
            assert learning == len([name for name in self.gradients if name.rpartition(".")[0] in self.rows])
            for name, value in strategy.model.named_buffers():
                assert torch.equal(value, self.buffers[name]), name
        self.checked[not self.partial] += 1
        self.step += 1


# --- adapt -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("network", NETWORKS)
def test_adaptation_step_by_step(network: str, kind: str) -> None:
    """15 mini-batches an experience, of which the chosen units have the first 3 for themselves."""
    plugin, audit = HyperHypoPlugin(percent=10), Audit(network, kind, 3)
    strategy = run(network, [plugin, audit], kind=kind)
    assert audit.checked == [6, 39]
    assert all(module.training for module in strategy.model.modules())
    assert not strategy.model._forward_pre_hooks and not strategy.optimizer._optimizer_step_pre_hooks
    assert [entry["experience"] for entry in plugin.history] == [1, 2]
    assert plugin.history[-1]["units"] == audit.rows
    assert plugin.history[-1]["selected"] == sum(len(rows) for rows in audit.rows.values())
    assert plugin.history[-1]["samples"] == SAMPLES and plugin.history[-1]["output_shift"] == 0


@pytest.mark.parametrize(("epochs", "share", "steps"), [(10, 0.2, 6), (1, 0.2, 1), (2, 0.5, 3), (3, 0.1, 1), (2, 1, 6)])
def test_the_stage_lasts_for_a_share_of_the_mini_batches(epochs: int, share: float, steps: int) -> None:
    audit = Audit("mlp", "adam", steps)
    run("mlp", [HyperHypoPlugin(percent=10, adapt_share=share), audit], experiences=2, epochs=epochs)
    assert audit.checked == [steps, 6 * epochs - steps]


def test_evaluation_and_extra_forward_passes_disturb_nothing() -> None:
    """GEM runs memory batches through the network in training mode, and evaluation sets every module's mode."""
    audit = Audit("convolutional", "adam", 3)
    plugins = [HyperHypoPlugin(percent=10), GEMPlugin(8, 0.5), audit]
    run("convolutional", plugins, experiences=2, epochs=5, eval_every=1)
    assert audit.checked == [3, 27]


def test_stripping_stands_beside_it() -> None:
    audit = Audit("mlp", "adam", 3)
    stripping = SynapticStrippingPlugin()
    strategy = naive("mlp", [stripping, HyperHypoPlugin(percent=10), audit])
    with torch.no_grad():
        strategy.model[0].bias[3] = -9
    for experience in stream("mlp"):
        strategy.train(experience)
    assert audit.checked == [6, 39]
    assert stripping.masks.removed() > 0
    for name in stripping.masks:
        weight = strategy.model.get_submodule(name).weight
        assert bool((weight[~stripping.masks.kept(strategy.model, name)] == 0).all())


def test_a_stage_that_is_cut_short_leaves_no_trace() -> None:
    class Stop(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs) -> None:
            if strategy.experience.current_experience == 1:
                assert strategy.model._forward_pre_hooks
                strategy.stop_training()

    strategy = run("mlp", [HyperHypoPlugin(percent=10), Stop()], experiences=2)
    assert not strategy.model._forward_pre_hooks and strategy.model[2].training


def test_an_online_stream_counts_up_to_its_boundaries() -> None:
    """Experiences come in 6 parts of 8 samples each: of 6 x 1 mini-batches the first two are the stage."""
    seen = []

    class Look(SupervisedPlugin):
        def before_update(self, strategy, **kwargs) -> None:
            seen.append(bool(strategy.optimizer._optimizer_step_pre_hooks))

    strategy = naive("mlp", [HyperHypoPlugin(percent=10), Look()], epochs=1)
    for part in split_online_stream(stream("mlp", 2), 8, access_task_boundaries=True, seed=0):
        strategy.train(part)
        assert not strategy.optimizer._optimizer_step_pre_hooks
    assert seen == [False] * 6 + [True] * 2 + [False] * 4


# --- nothing, chance and repetition ----------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    "arguments",
    [
        {"percent": 0},
        {"percent": 0, "units": "random"},
        {"percent": 0, "mode": "prune"},
        {"maximum_pruned": 0, "mode": "prune"},
        {"adapt_share": 0},
        {"select": "bounds", "low": 0, "high": 1e9, "saliency": "mean_abs", "units": "hyper"},
    ],
)
def test_what_treats_nothing_is_bit_identical_to_no_plugin(network: str, arguments: dict) -> None:
    plugin = HyperHypoPlugin(**arguments)
    treated, plain = run(network, [plugin], epochs=2), run(network, [], epochs=2)
    assert len(plugin.history) == 2
    assert same(everything(treated), everything(plain))


def test_the_random_control_has_the_same_sizes_and_other_units() -> None:
    chosen, control, again, other = (
        HyperHypoPlugin(percent=10, units=units, seed=seed)
        for units, seed in (("both", 0), ("random", 0), ("random", 0), ("random", 1))
    )
    runs = [run("mlp", [plugin], experiences=2, epochs=2) for plugin in (chosen, control, again, other)]
    sizes = [{name: len(numbers) for name, numbers in p.history[0]["units"].items()} for p in (chosen, control, other)]
    assert sizes[0] == sizes[1] == sizes[2] == {"0": 4, "3": 2}
    assert len({str(plugin.history[0]["units"]) for plugin in (chosen, control, other)}) == 3
    for count in ("hyper", "hypo", "selected", "trainable_fraction"):
        assert chosen.history[0][count] == control.history[0][count]
    assert chosen.history[0]["trainable_fraction"] == (4 * 9 + 2 * 21) / (20 * 9 + 12 * 21 + 12 * 13)
    assert control.history == again.history and same(everything(runs[1]), everything(runs[2]))
    assert not same(everything(runs[1]), everything(runs[3]))


@pytest.mark.parametrize(
    ("network", "arguments"),
    [
        ("mlp", {"units": "random"}),
        ("growing", {"mode": "prune", "units": "random"}),
        ("multi_head", {"mode": "prune", "saliency": "mean_abs"}),
    ],
)
def test_state_goes_on_where_it_stopped(network: str, arguments: dict, tmp_path) -> None:
    strategies = []
    for interrupted in (False, True):
        plugin = HyperHypoPlugin(percent=10, **arguments)
        strategy = naive(network, [plugin], epochs=2)
        for number, experience in enumerate(stream(network)):
            if number == 2 and interrupted:
                torch.save(plugin.state_dict(), tmp_path / "state.pt")
                resumed = HyperHypoPlugin(percent=10, seed=99, **arguments)
                resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
                assert str(resumed.state_dict()) == str(plugin.state_dict())
                strategy.plugins[strategy.plugins.index(plugin)] = pickle.loads(pickle.dumps(resumed))
                plugin = next(p for p in strategy.plugins if isinstance(p, HyperHypoPlugin))
            strategy.train(experience)
        strategies.append((strategy, plugin))
    (whole, one), (parts, two) = strategies
    assert one is not two and one.history == two.history and len(one.history) == 2
    assert same(everything(whole), everything(parts))
    assert str(one.state_dict()) == str(two.state_dict())


def test_counts_reach_the_loggers() -> None:
    strategy = run("mlp", [HyperHypoPlugin(percent=10)], experiences=2, epochs=1, evaluator=EvaluationPlugin())
    values = strategy.evaluator.get_last_metrics()
    assert values["HyperHypoSelected/train_phase/train_stream/Exp001"] == 6
    assert values["HyperHypoHyper/train_phase/train_stream/Exp001"] == 3
    assert values["HyperHypoOutputShift/train_phase/train_stream/Exp001"] == 0


# --- prune -----------------------------------------------------------------------------------------------------


class Silent(SupervisedPlugin):
    """Checks after every update that what was pruned is silent: its incoming weights make no difference at all."""

    def __init__(self, plugin: HyperHypoPlugin) -> None:
        super().__init__()
        self.plugin, self.checked, self.earlier = plugin, 0, {}

    def before_training_exp(self, strategy, **kwargs) -> None:
        for name, mask in self.earlier.items():
            assert bool(self.plugin.pruned[name][mask].all())
        self.earlier = {name: mask.clone() for name, mask in self.plugin.pruned.items()}

    def after_update(self, strategy, **kwargs) -> None:
        if not self.plugin.pruned:
            return
        model = copy.deepcopy(strategy.model).eval()
        before = avalanche_forward(model, strategy.mb_x, strategy.mb_task_id)
        for name, mask in self.plugin.pruned.items():
            with torch.no_grad():
                model.get_submodule(name).weight[mask] = 7
        assert torch.equal(before, avalanche_forward(model, strategy.mb_x, strategy.mb_task_id))
        self.checked += 1


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("network", NETWORKS)
def test_pruned_units_are_silent_for_good(network: str, kind: str) -> None:
    plugin = HyperHypoPlugin("prune", percent=10)
    silent = Silent(plugin)
    strategy = run(network, [plugin, silent], epochs=2, kind=kind)
    assert silent.checked == 12
    assert [entry["pruned"] for entry in plugin.history] == [entry["selected"] for entry in plugin.history]
    assert plugin.history[-1]["pruned_in_all"] == sum(entry["pruned"] for entry in plugin.history) > 0
    assert all(entry["output_shift"] > 0 and entry["skipped"] == entry["spared"] == 0 for entry in plugin.history)
    first, second = (entry["units"] for entry in plugin.history)
    assert all(not set(first[name]) & set(second[name]) for name in first)
    state = strategy.optimizer.state
    for name in plugin.masks:
        weight = strategy.model.get_submodule(name).weight
        removed = ~plugin.masks.kept(strategy.model, name)
        assert bool(removed.any()) and bool((weight[removed] == 0).all())
        for value in state.get(weight, {}).values():
            if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                assert bool((value[removed] == 0).all())


def test_pruned_units_stay_silent_whatever_other_plugins_do_to_weights() -> None:
    class Shake(SupervisedPlugin):
        def after_update(self, strategy, **kwargs) -> None:
            with torch.no_grad():
                for parameter in strategy.model.parameters():
                    parameter += 0.01

    plugin = HyperHypoPlugin("prune", percent=10)
    silent = Silent(plugin)
    run("mlp", [Shake(), plugin, silent], experiences=2, epochs=1)
    assert silent.checked == 3


def test_a_head_that_grows_or_is_added_does_not_hear_pruned_units() -> None:
    growing_plugin, heads_plugin = (HyperHypoPlugin("prune", percent=10) for _ in range(2))
    grown = run("growing", [growing_plugin], epochs=1)
    assert grown.model[3].classifier.weight.shape == (6, 20)
    assert bool((grown.model[3].classifier.weight[:, growing_plugin.pruned["0"]] == 0).all())
    heads = run("multi_head", [heads_plugin], epochs=1).model.classifier.classifiers
    assert len(heads) == 3
    for head in heads.values():
        assert bool((head.classifier.weight[:, heads_plugin.pruned["features.0"]] == 0).all())


def test_a_long_stream_does_not_use_a_layer_up() -> None:
    plugin = HyperHypoPlugin("prune", percent=20, maximum_pruned=0.5)
    run("mlp", [plugin], experiences=6, epochs=1)
    assert {name: int(mask.sum()) for name, mask in plugin.pruned.items()} == {"0": 10, "3": 6}
    assert plugin.history[-1]["pruned"] == 0 and plugin.history[-1]["spared"] == plugin.history[-1]["selected"] > 0
    everything_goes = HyperHypoPlugin("prune", percent=50, maximum_pruned=1)
    run("mlp", [everything_goes], experiences=6, epochs=1)
    assert {name: int(mask.sum()) for name, mask in everything_goes.pruned.items()} == {"0": 19, "3": 11}


class Residual(nn.Module):
    """A group that cannot be pruned beside one that can."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer, self.head = (
            nn.Linear(*shape) for shape in ((8, 6), (6, 10), (10, 6), (6, 2))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.stem(x))
        return self.head(torch.relu(h + self.outer(torch.relu(self.inner(h)))))


def test_units_that_are_not_private_are_skipped_when_pruning_and_adapted_nonetheless() -> None:
    model, x = Residual(), torch.randn(40, 8)
    units, probe = find_units(model, x), Probe([(x,)])
    watched = {group.name: group.private for group in units}
    assert watched.pop("inner") and watched and not any(watched.values())
    before, pruned = copy.deepcopy(model.state_dict()), {}
    rule, generator = HyperHypoRule("prune", percent=10), torch.Generator()
    report, selections = prune_units(model, units, probe, Masks(), pruned, rule, None, generator)
    number = sum(len(each.chosen) for name, each in selections.items() if name != "inner")
    assert report.counts["skipped"] == number > 0 and report.counts["pruned"] == len(selections["inner"].chosen) == 2
    assert set(pruned) == {"inner"}
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["outer.weight"]
    report, selections, entries = choose_entries(model, units, probe, HyperHypoRule(percent=10), generator)
    assert {name.split(".")[0] for name in entries} == {"stem", "inner", "outer"}
    for group in units:
        for write in group.writes:
            rows = write.rows[selections[group.name].chosen].tolist()
            assert set(rows) <= set(entries[f"{write.layer}.weight"].any(1).nonzero().flatten().tolist())
            assert set(rows) <= set(entries[f"{write.layer}.bias"].nonzero().flatten().tolist())


def test_both_ends_take_turns_where_there_is_room_for_some_only() -> None:
    model = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1))
    with torch.no_grad():  # unit u fires on u of 8 samples
        model[0].weight.fill_(1)
        model[0].bias.copy_(torch.arange(8) - 7.5)
    x = torch.arange(8.0).view(8, 1)
    for maximum, taken in ((0.13, [7]), (0.25, [0, 7]), (0.375, [0, 6, 7]), (1.0, [0, 1, 6, 7])):
        twin, pruned = copy.deepcopy(model), {}
        rule = HyperHypoRule("prune", percent=25, maximum_pruned=maximum)
        arguments = (find_units(twin, x), Probe([(x,)]), Masks(), pruned, rule, None, torch.Generator())
        report, _ = prune_units(twin, *arguments)
        assert report.units == {"0": taken}
        assert report.counts["spared"] == 4 - len(taken)
        assert (twin[2].weight[0] == 0).nonzero().flatten().tolist() == taken


# --- mistakes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "freeze"}, "unknown mode 'freeze'; there are: adapt, prune"),
        ({"saliency": "entropy"}, "unknown saliency 'entropy'; there are: frequency, mean_abs"),
        ({"select": "top"}, "unknown select 'top'; there are: percentile, bounds"),
        ({"units": "all"}, "unknown units 'all'; there are: both, hyper, hypo, random"),
        ({"percent": 51}, "percent must lie in"),
        ({"percent": -1}, "percent must lie in"),
        ({"percent": math.nan}, "percent must lie in"),
        ({"select": "bounds", "low": 0.9, "high": 0.1}, "bounds must satisfy 0 <= low < high <= 1"),
        ({"select": "bounds", "low": -0.1}, "bounds must satisfy"),
        ({"select": "bounds", "high": 1.1}, "bounds must satisfy"),
        ({"select": "bounds", "saliency": "mean_abs"}, "needs both low and high"),
        ({"select": "bounds", "saliency": "mean_abs", "low": 2, "high": 2}, "bounds must satisfy 0 <= low < high,"),
        ({"low": 0.1}, 'select="bounds" only'),
        ({"adapt_share": 1.5}, "adapt_share must lie in"),
        ({"maximum_pruned": -0.5}, "maximum_pruned must lie in"),
        ({"probe_samples": 0}, "probe_samples must be"),
    ],
)
def test_bad_arguments_are_named_in_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        HyperHypoPlugin(**arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_weight_without_rows_of_its_own_is_refused() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2))
    units = UnitGroups([UnitGroup("0", size=6, activation="relu", at="1", consumers=[("2", 1)])])
    chosen = choose({"0": statistics([1, 2, 3, 4, 5, 6], 8)}, HyperHypoRule())
    with pytest.raises(UserError, match="layer '0' computes its weight from other parameters"):
        incoming_entries(model, units, chosen)


def test_rows_of_two_writers_and_of_a_layer_that_writes_some_units_only() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(3, 2, bias=False)})
    rows = [torch.tensor([3, 2, 1, 0]), torch.tensor([-1, -1, 0, 1])]
    writes = tuple(Write(layer, row, None, None) for layer, row in zip("ab", rows, strict=True))
    units = UnitGroups([UnitGroup("a", size=4, activation="relu", at="a", producers=("a", "b"), writes=writes)])
    picked = {"a": Selection(*[torch.tensor([0, 2])] * 3)}
    entries = incoming_entries(model, units, picked)
    assert set(entries) == {"a.weight", "a.bias", "b.weight"}
    assert entries["a.weight"].any(1).tolist() == entries["a.bias"].tolist() == [False, True, False, True]
    assert entries["b.weight"].tolist() == [[True] * 3, [False] * 3]


def test_a_group_that_shrinks_after_pruning_is_an_error_and_one_that_is_gone_is_forgotten() -> None:
    model, x = mlp(), torch.randn(4, 8)
    units = find_units(model, x)
    pruned = {"0": torch.ones(30, dtype=torch.bool)}
    with pytest.raises(UserError, match="group '0' had 30 units when some were pruned, and has 20 now"):
        keep_pruned(model, units, Masks(), pruned)
    pruned, masks = {"elsewhere": torch.ones(3, dtype=torch.bool), "0": torch.ones(2, dtype=torch.bool)}, Masks()
    keep_pruned(model, units, masks, pruned)
    assert set(pruned) == {"0"} and pruned["0"].tolist() == [True] * 2 + [False] * 18
    assert bool((model[3].weight[:, :2] == 0).all()) and masks.removed() == 24


def test_data_without_a_length_is_an_error_that_says_so() -> None:
    plugin = HyperHypoPlugin()
    plugin._entries, plugin._iterations_left = {"0.weight": torch.ones(1, dtype=torch.bool)}, None
    with pytest.raises(UserError, match="the data has no length"):
        plugin.before_training_epoch(SimpleNamespace(dataloader=iter([]), train_epochs=1, experience=None))
