"""What holds for every method on whole weights, in strategies from end to end."""

import copy
import io
import pickle

import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.training.plugins import EWCPlugin, GDumbPlugin, GEMPlugin, LwFPlugin, ReplayPlugin, SupervisedPlugin
from stripping_streams import FixedHead
from torch import nn
from weight_methods import (
    AT_BOUNDARIES,
    IDLE,
    PENALTIES,
    PLUGINS,
    MultiHead,
    Network,
    conv,
    everything,
    naive,
    run,
    same,
    stream,
)

from plasticity.errors import UserError
from plasticity.plugins import L2InitPlugin, ReDoPlugin, SynapticStrippingPlugin


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", IDLE)
def test_strength_zero_is_bit_identical_to_no_plugin(name, optimizer):
    with_plugin = everything(run([PLUGINS[name](**IDLE[name])], optimizer=optimizer, eval_every=1))
    state = torch.get_rng_state()
    without = everything(run([], optimizer=optimizer, eval_every=1))
    assert same(with_plugin, without)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", PLUGINS)
def test_it_does_something_draws_no_random_number_and_the_same_seed_gives_the_same_run(name):
    runs, states, histories = [], [], []
    for _ in range(2):
        plugin = PLUGINS[name]()
        runs.append(everything(run([plugin], shuffle=True)))
        states.append(torch.get_rng_state())
        histories.append(plugin.history)
    without = everything(run([], shuffle=True))
    assert same(*runs) and histories[0] == histories[1]
    assert not same(runs[0], without)
    assert torch.equal(states[0], torch.get_rng_state())
    assert all(torch.isfinite(tensor).all() for tensor in runs[0])
    for entry in histories[0]:
        assert entry["method"] == name
    if name in AT_BOUNDARIES:
        assert [(entry["experience"], entry["iteration"]) for entry in histories[0]] == [(1, 6), (2, 12)]
        for entry in histories[0]:
            assert entry["output_shift"] > 0 and entry["relative_change"] > 0 and entry["samples"] == 24
    else:
        assert [(entry["experience"], entry["steps"]) for entry in histories[0]] == [(0, 6), (1, 6), (2, 6)]


def test_another_seed_gives_other_noise():
    for name in ("shrink-perturb", "shrink-perturb-step"):
        runs = [everything(run([PLUGINS[name](seed=seed)])) for seed in (0, 1)]
        assert not same(*runs)


@pytest.mark.parametrize("name", PLUGINS)
@pytest.mark.parametrize("task_labels", [False, True])
def test_growing_and_several_heads_replay_and_evaluation_in_between(name, task_labels):
    model = MultiHead if task_labels else Network
    plugin = PLUGINS[name]()
    strategy = run(
        [plugin, ReplayPlugin(mem_size=12)], model, stream(task_labels=task_labels), evaluate=True, eval_every=1
    )
    assert len(plugin.history) == (2 if name in AT_BOUNDARIES else 3)
    assert all(torch.isfinite(tensor).all() for tensor in everything(strategy))


@pytest.mark.parametrize("name", PLUGINS)
def test_evaluation_in_between_changes_nothing(name):
    runs = []
    for evaluate, every in (False, -1), (True, 1):
        plugin = PLUGINS[name]()
        strategy = run([plugin], FixedHead, evaluate=evaluate, shuffle=False, eval_every=every)
        runs.append((everything(strategy), plugin.history))
    assert same(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


@pytest.mark.parametrize("name", PLUGINS)
@pytest.mark.parametrize("first", [True, False])
def test_what_stripping_removed_stays_removed(name, first):
    stripping = SynapticStrippingPlugin(every="epoch")

    class AlwaysZero(SupervisedPlugin):
        checks = 0

        def before_forward(self, strategy, **kwargs):
            for layer in stripping.masks:
                weight = strategy.model.get_submodule(layer).weight
                assert not weight[~stripping.masks.kept(strategy.model, layer)].any()
                AlwaysZero.checks += 1

        before_eval_forward = before_forward

    plugins = [PLUGINS[name](), stripping]
    run([*(plugins if first else plugins[::-1]), AlwaysZero()], evaluate=True)
    assert stripping.masks.removed() > 0 and AlwaysZero.checks > 20


@pytest.mark.parametrize("name", PLUGINS)
@pytest.mark.parametrize("other", ["EWC", "LwF", "GEM", "GDumb", "ReDo", "L2 Init"])
def test_other_plugins_beside_it(name, other):
    others = {
        "EWC": lambda: EWCPlugin(1.0),
        "LwF": lambda: LwFPlugin(),
        "GEM": lambda: GEMPlugin(8, 0.5),
        "GDumb": lambda: GDumbPlugin(mem_size=18),
        "ReDo": lambda: ReDoPlugin(every=4),
        "L2 Init": lambda: L2InitPlugin(),
    }
    model = FixedHead if other == "GEM" else Network
    plugin = PLUGINS[name]()
    strategy = run([plugin, others[other]()], model, stream(2), train_epochs=1)
    assert plugin.history
    assert all(torch.isfinite(tensor).all() for tensor in everything(strategy))


def through_file(plugin, make):
    buffer = io.BytesIO()
    torch.save(plugin.state_dict(), buffer)
    buffer.seek(0)
    other = make()
    other.load_state_dict(torch.load(buffer, weights_only=True))
    return other


@pytest.mark.parametrize("name", PLUGINS)
@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
def test_a_plugin_restored_between_experiences_goes_on_bit_identically(name, way):
    make = (lambda: PLUGINS[name](seed=3)) if "perturb" in name else PLUGINS[name]
    copied = {
        "state_dict": lambda plugin: through_file(plugin, make),
        "pickle": lambda plugin: pickle.loads(pickle.dumps(plugin)),
        "deepcopy": copy.deepcopy,
    }[way]
    results = []
    for restored in False, True:
        torch.manual_seed(0)
        plugin = make()
        strategy = naive(Network(), [plugin])
        for experience in stream().train_stream:
            if restored:
                plugin = strategy.plugins[0] = copied(plugin)
            strategy.train(experience)
        results.append((everything(strategy), plugin.history, plugin.state_dict()))
    assert same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    assert str(results[0][2]) == str(results[1][2])


@pytest.mark.parametrize("name", [name for name in PLUGINS if name not in AT_BOUNDARIES])
def test_a_step_waits_for_no_device(name):
    """On the device "meta" nothing has a value, so that whatever looks at one raises."""
    plugin = PLUGINS[name]()
    with torch.device("meta"):
        model = conv()
        inputs, targets = torch.empty(4, 3, 7, 7), torch.zeros(4, dtype=torch.int64)

    class Strategy:
        device, plugins = torch.device("meta"), (plugin,)
        experience, adapted_dataset = object(), range(4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    strategy = Strategy()
    strategy.model = model
    if name == "hare-tortoise":
        plugin.before_train_dataset_adaptation(strategy)
    plugin.before_training_exp(strategy)
    for _ in range(5):
        strategy.optimizer.zero_grad()
        strategy.loss = nn.functional.cross_entropy(model(inputs), targets)
        plugin.before_backward(strategy)
        strategy.loss.backward()
        plugin.after_backward(strategy)
        plugin.before_update(strategy)
        strategy.optimizer.step()
        plugin.after_update(strategy)
    assert plugin._steps == 5


@pytest.mark.parametrize("boundaries", [True, False])
@pytest.mark.parametrize("name", PLUGINS)
def test_online_streams(name, boundaries):
    online = split_online_stream(stream(2).train_stream, experience_size=6, access_task_boundaries=boundaries)
    plugin = PLUGINS[name]()
    settings = {"experiences": online, "train_mb_size": 6, "train_epochs": 1}
    if name in AT_BOUNDARIES and not boundaries:
        with pytest.raises(UserError, match="boundaries"):
            run([plugin], FixedHead, **settings)
        return
    strategy = run([plugin], FixedHead, **settings)
    if name in AT_BOUNDARIES:
        assert len(plugin.history) == 1
    else:
        assert [entry["steps"] for entry in plugin.history] == ([4, 4] if boundaries else [])
    assert all(torch.isfinite(tensor).all() for tensor in everything(strategy))


@pytest.mark.parametrize("name", PENALTIES)
def test_heads_of_other_tasks_stay_as_they_are(name):
    """An idle head has no other gradient: with Adam a penalty would carry it away at full speed."""
    plugin = PLUGINS[name](strength=0.1)
    torch.manual_seed(0)
    strategy = naive(MultiHead(), [plugin], "adamw")
    benchmark = stream(task_labels=True)
    strategy.optimizer.param_groups[0]["weight_decay"] = 0.0
    strategy.train(benchmark.train_stream[0])
    head = strategy.model.classifier.classifiers["0"].classifier
    kept = head.weight.detach().clone()
    strategy.optimizer.param_groups[0]["weight_decay"] = 0.0
    strategy.train(benchmark.train_stream[1])
    assert torch.equal(strategy.model.classifier.classifiers["0"].classifier.weight[:2], kept[:2])


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_follows_the_scale_of_the_loss(name):
    """As a gradient scaler for mixed precision has it: scaled before the backward pass, unscaled before the step."""
    scale = 2.0**10
    results = []
    for scaled in False, True:

        class Scaled(SupervisedPlugin):
            def before_backward(self, strategy, scaled=scaled, **kwargs):
                strategy.loss = strategy.loss * (scale if scaled else 1)

            def before_update(self, strategy, scaled=scaled, **kwargs):
                for parameter in strategy.model.parameters():
                    if parameter.grad is not None and scaled:
                        parameter.grad /= scale

        results.append(everything(run([PLUGINS[name](strength=1e-3), Scaled()], FixedHead, shuffle=False)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_replaced_loss_is_an_error_in_one_line():
    class Replaces(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            strategy.loss = strategy._criterion(strategy.mb_output, strategy.mb_y)

    with pytest.raises(UserError, match="L2InitPlugin") as error:
        run([L2InitPlugin(), Replaces()])
    assert "\n" not in str(error.value)


BAD = [
    ("l2", {"strength": -1}),
    ("l2", {"strength": "much"}),
    ("l2", {"preset": "nobody2020"}),
    ("l2-init", {"strength": float("inf")}),
    ("l2-init", {"preset": "nobody2020"}),
    ("shrink-perturb", {"shrink": 2}),
    ("shrink-perturb", {"perturb": -1}),
    ("shrink-perturb", {"preset": "kumar2023"}),
    ("shrink-perturb", {"srhink": 0.4}),
    ("shrink-perturb", {"variant": "both"}),
    ("shrink-perturb-step", {"decay": 1.5}),
    ("shrink-perturb-step", {"scale": "huge"}),
    ("shrink-perturb-interpolate", {"strength": 7}),
    ("fire", {"iterations": 0}),
    ("fire", {"layers": "heads"}),
    ("fire", {"optimizer_state": "new"}),
    ("fire", {"probe_samples": 0}),
    ("dash", {"threshold": -0.1}),
    ("dash", {"smoothing": 0}),
    ("dash", {"batch_size": 0}),
    ("dash", {"alpha": 0.3}),
    ("spectral-regularization", {"power": 0}),
    ("spectral-regularization", {"k": 2}),
    ("normalize-and-project", {"normaliser_decay": 2}),
    ("hare-tortoise", {"momentum": 1.1}),
    ("hare-tortoise", {"reset_every": 0}),
    ("hare-tortoise", {"period": 3}),
]


@pytest.mark.parametrize(("name", "arguments"), BAD, ids=str)
def test_bad_arguments_are_refused_in_one_line(name, arguments):
    with pytest.raises(UserError, match=next(iter(arguments))) as error:
        PLUGINS[name](**arguments)
    assert "\n" not in str(error.value)


def test_a_model_without_hidden_units_is_welcome():
    for name in AT_BOUNDARIES:
        plugin = PLUGINS[name]()
        run([plugin], lambda: nn.Linear(8, 6))
        assert len(plugin.history) == 2
