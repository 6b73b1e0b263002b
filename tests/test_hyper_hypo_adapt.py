"""Adaptation of hyper- and hypo-units in Avalanche's Naive, checked at every update; chance and repetition."""

import copy
import pickle

import numpy as np
import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.models import avalanche_forward
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, GEMPlugin, SupervisedPlugin
from hyper_hypo_runs import (
    BATCH,
    NETWORKS,
    SAMPLES,
    everything,
    naive,
    numpy_ends,
    run,
    same,
    stream,
)
from torch import nn

from plasticity.plugins import HyperHypoPlugin, SynapticStrippingPlugin


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
