"""Avalanche's own checkpoints of strategies with every plugin and metric: what is loaded goes on bit for bit."""

import inspect
import io
from functools import partial

import pytest
import torch
from avalanche.checkpointing import maybe_load_checkpoint, save_checkpoint
from avalanche.training import Naive, Replay
from avalanche.training.plugins import EvaluationPlugin
from stripping_streams import Network, everything, same, stream
from torch import nn

import plasticity.plugins
from plasticity.checkpoints import picklable_optimizers
from plasticity.metrics import JSONLinesLogger, plasticity_metrics
from plasticity.metrics.measured import MEASURES
from plasticity.optim import UPGD
from plasticity.plugins import TreatmentPlugin

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified:UserWarning:avalanche")

ACTING = {
    "AdaptivePlugin": {"dead": 0.01},
    "ContinualBackpropPlugin": {"replacement_rate": 0.1, "maturity": 1},
    "GradientDormancyPlugin": {"every": 2, "batches": 2},
    "HareTortoisePlugin": {"reset_every": 2},
    "HyperHypoPlugin": {"percent": 20},
    "NormalizeAndProjectPlugin": {"normaliser_decay": 0.1},
    "PlasticityInjectionPlugin": {"experience": 1},
    "ReDoPlugin": {"every": 2},
    "SelfNormalizedResetsPlugin": {"maximum_age": 6, "check_every": 1, "maximum_share": 1},
}
"""Arguments with which a plugin acts within a few mini-batches."""

PLUGINS = {
    name: partial(getattr(plasticity.plugins, name), **ACTING.get(name, {}))
    for name in plasticity.plugins.__all__
    if inspect.isclass(getattr(plasticity.plugins, name)) and name != TreatmentPlugin.__name__
}
PLUGINS |= {
    "HyperHypoPlugin prunes": lambda: plasticity.plugins.HyperHypoPlugin("prune", percent=20),
    "DemonPruningPlugin shrinks": lambda: plasticity.plugins.DemonPruningPlugin("shrink"),
    "ShrinkPerturbPlugin at steps": lambda: plasticity.plugins.ShrinkPerturbPlugin("step"),
}

OPTIMIZERS = {
    name: getattr(torch.optim, name)
    for name in ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
}
OPTIMIZERS["UPGD"] = UPGD


def built(plugins, optimizer=torch.optim.Adam, metrics=(), loggers=(), kind=Naive):
    torch.manual_seed(0)
    model = Network()
    return kind(
        model=model,
        optimizer=optimizer(model.parameters(), lr=0.01),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        train_epochs=2,
        plugins=plugins,
        evaluator=EvaluationPlugin(*metrics, loggers=list(loggers), strict_checks=False),
        **({"mem_size": 20} if kind is Replay else {}),
    )


def saved(strategy):
    file = io.BytesIO()
    with picklable_optimizers():
        save_checkpoint(strategy, file)
    file.seek(0)
    return file


def learn(strategy, experiences):
    for experience in experiences.train_stream[strategy.clock.train_exp_counter :]:
        strategy.train(experience, num_workers=0)
        strategy.eval(experiences.test_stream[:1])
    return everything(strategy)


def gone_on(make):
    """A strategy that goes on after two of three experiences, and its copy that was saved there and loaded."""
    one = make()
    for experience in stream().train_stream[:2]:
        one.train(experience)
        one.eval(stream().test_stream[:1])
    file = saved(one)
    after = learn(one, stream())
    two, number = maybe_load_checkpoint(make(), file)  # random states, too
    assert number == 2
    return one, after, two, learn(two, stream())


@pytest.mark.parametrize("name", PLUGINS)
def test_every_plugin_goes_on_after_avalanches_checkpoint(name):
    one, after, two, after_loading = gone_on(lambda: built([PLUGINS[name]()]))
    assert same(after, after_loading)
    plugins = [strategy.plugins[0] for strategy in (one, two)]
    assert plugins[0] is not plugins[1] and plugins[0].history == plugins[1].history
    assert str(plugins[0].state_dict()) == str(plugins[1].state_dict())
    assert plugins[0].history  # it has done something


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_can_be_saved(name):
    _, after, _, after_loading = gone_on(lambda: built([], OPTIMIZERS[name]))
    assert same(after, after_loading)


def test_replay_goes_on():
    _, after, _, after_loading = gone_on(lambda: built([PLUGINS["ReDoPlugin"]()], kind=Replay))
    assert same(after, after_loading)


@pytest.mark.parametrize("probe", [False, True])
def test_every_metric_goes_on(probe, tmp_path):
    path = tmp_path / "metrics.jsonl"

    def make():
        metrics = plasticity_metrics(
            minibatch=True,
            epoch=True,
            experience=True,
            stream=True,
            measures=tuple(MEASURES),
            per_layer=True,
            probe=stream().train_stream[0] if probe else None,
        )
        logger = JSONLinesLogger(path, append=True)
        return built([PLUGINS["SynapticStrippingPlugin"]()], metrics=metrics, loggers=[logger])

    one = make()
    for experience in stream().train_stream[:2]:
        one.train(experience)
        one.eval(stream().test_stream[:1])
    file, before = saved(one), len(path.read_text())
    after, written = learn(one, stream()), path.read_text()[before:]
    two, _ = maybe_load_checkpoint(make(), file)
    assert same(after, learn(two, stream()))
    assert path.read_text()[before + len(written) :] == written
    assert all(f'"{name}_' in written for name in MEASURES)


def test_the_helper_leaves_torch_as_it_was():
    before = dict(vars(torch.optim))
    with pytest.raises(KeyError), picklable_optimizers():
        assert torch.optim.adam.Adam is torch.optim.Adam
        raise KeyError
    assert vars(torch.optim) == before
