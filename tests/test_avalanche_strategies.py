"""Each plugin beside each of Avalanche's own strategies: it acts, sees the strategy's own passes alone, and holds.

By default each plugin is tried with about a third of the strategies, and each strategy with a third of the plugins;
with PLASTICITY_EVERY=1 in the environment every pair is. What is refused is always tried.
"""

import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from avalanche.benchmarks import split_online_stream
from avalanche.training import supervised
from avalanche.training.plugins import FromScratchTrainingPlugin, SupervisedPlugin
from avalanche.training.supervised import lamaml_v2
from avalanche_plugins import AT_THE_START, BETWEEN, IDLE, NOT_FIRST, PLUGINS, REFUSED, TASKS, UNREADY
from avalanche_strategies import NETWORKS, STRATEGIES, build, learn, stream
from avalanche_watching import Holds, OwnPasses, SameRandomness, left_hooks
from strategy_runs import COUNTS
from torch import nn

from plasticity import plugins as library
from plasticity.errors import UserError
from plasticity.metrics import plasticity_metrics
from plasticity.plugins.beside import ACTS, CONFLICTS, acts_of
from plasticity.plugins.removed import removed_by


def strategy_with(name, plugins, **settings):
    """A strategy by name; "from scratch, then" is what is to be used where FromScratchTraining is refused."""
    if name == "from scratch, then":
        return build("Naive", [FromScratchTrainingPlugin(), *plugins], **settings)
    return build(name, plugins, **settings)


def pairs():
    """Names of strategy and plugin that are not refused."""
    every = os.environ.get("PLASTICITY_EVERY") == "1"
    found = []
    for number, strategy in enumerate((*STRATEGIES, "from scratch, then")):
        for place, plugin in enumerate(PLUGINS):
            if plugin not in REFUSED.get(strategy, ()) and (every or (number + place) % 3 == 0):
                found.append((strategy, plugin))
    return found


def run(strategy, name, evaluate, kind=None, **settings):
    """Train; returns the weights and the random state after it."""
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    benchmark = stream(kind or ("task" if name in TASKS else "class"))
    learn(strategy, benchmark, evaluate=evaluate, online=name == "OnlineNaive" or kind == "online", **settings)
    return {**strategy.model.state_dict(), "random": torch.get_rng_state()}


def made(name, plugins, **settings):
    torch.manual_seed(0)
    return strategy_with(name, [SameRandomness(), *plugins], **settings)


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(value, other[name]) for name, value in one.items())


def acted(name, plugin):
    return sum(report.get(count, 0) for report in plugin.history for count in COUNTS[name]) > 0


# --- tests ---------------------------------------------------------------------------------------------------------


def test_every_plugin_and_strategy_is_here():
    kinds = {type(make()) for make in PLUGINS.values()}
    public = {getattr(library, name) for name in library.__all__} - {library.TreatmentPlugin}
    assert kinds == public
    done = [acts_of(make()) for make in PLUGINS.values()]
    assert all(acts and acts <= ACTS for acts in done)
    assert all(conflict.acts <= ACTS for conflict in CONFLICTS)
    for name in (*STRATEGIES, "from scratch, then"):
        assert name in {strategy for strategy, _ in pairs()} or set(REFUSED[name]) == set(PLUGINS)


def test_the_documentation_lists_what_is_refused():
    page = (Path(__file__).parents[1] / "docs" / "avalanche.md").read_text(encoding="utf-8")
    table = page.split("<!-- refused -->")[1].split("<!-- end -->")[0].strip().splitlines()[2:]
    found = {}
    for row in table:
        names, refused, _ = (cell.strip() for cell in row.strip("|").split("|"))
        plugins = set(re.findall(r"`([^`]+)`", refused))
        if refused.startswith("all"):
            plugins = set(PLUGINS) - plugins
        for name in re.findall(r"`([^`]+)`", names):
            found.setdefault(name, set()).update(plugins)
    assert found == {name: set(refused) for name, refused in REFUSED.items()}


@pytest.mark.parametrize(("name", "plugin"), pairs())
def test_every_plugin_lives_with_every_strategy(name, plugin, monkeypatch):
    one, other = PLUGINS[plugin](), PLUGINS[plugin]()
    holds, passes = Holds(one), OwnPasses(monkeypatch)
    strategy = passes.of(made(name, [one, holds], eval_every=-1 if name in UNREADY else 1))
    found = run(strategy, name, True)
    assert acted(plugin, one) == ((name, plugin) not in AT_THE_START)
    # it has seen the strategy's own training passes alone
    assert passes.own == len(holds.inputs) and not passes.others
    if plugin in ("continual-backprop", "self-normalized-resets"):
        assert passes.watched == passes.own
        assert sum(report["samples"] for report in one.history) == sum(map(len, holds.inputs))
    elif hasattr(one, "_recent"):
        seen = [batch[0] for batch in one._recent.batches()]
        assert seen and torch.equal(torch.cat(seen), torch.cat(holds.inputs)[-one._recent.samples :])
    # what it promises is true, and no hook is left
    if removed_by(strategy) and plugin != "demon-pruning-shrink" or plugin == "hyper-hypo":
        assert holds.looked > 0
    assert not left_hooks(strategy.model) and "forward" not in vars(strategy)
    # evaluations in between change nothing
    assert same(found, run(made(name, [other, Holds(other)]), name, False)) and other.history == one.history


@pytest.mark.parametrize(
    ("name", "plugin"), [pair for number, pair in enumerate(p for p in pairs() if p[1] in IDLE) if number % 2 == 0]
)
def test_a_plugin_that_does_nothing_leaves_a_strategy_bit_identical(name, plugin):
    without = run(made(name, []), name, False)
    assert same(run(made(name, [IDLE[plugin]()]), name, False), without)


TAMPERING = "Replay", "GEM", "A-GEM", "DER", "LwF", "Cumulative", "ER-ACE"


class Push(SupervisedPlugin):
    """Moves all weights a little after each experience, the same way every time."""

    def after_training_exp(self, strategy, **kwargs):
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in strategy.model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("plugin", PLUGINS)
def test_an_excluded_layer_is_left_alone_whatever_the_strategy_does(plugin):
    """The learning rate is 0, so that none but the plugin moves weights, and one who pushes them."""
    name = TAMPERING[list(PLUGINS).index(plugin) % len(TAMPERING)]
    without = run(made(name, [Push()], lr=0.0), name, False)["features.0.weight"]
    for excluded in "features.0", None:
        one = PLUGINS[plugin](exclude=excluded)
        found = run(made(name, [Push(), one], lr=0.0), name, False)["features.0.weight"]
        assert torch.equal(found, without) == (excluded is not None or plugin in NOT_FIRST)


@pytest.mark.parametrize(("name", "plugin"), [(name, plugin) for name in REFUSED for plugin in sorted(REFUSED[name])])
def test_what_cannot_be_right_is_refused_before_the_first_step(name, plugin):
    strategy = made(name, [PLUGINS[plugin]()])
    before = [value.clone() for value in strategy.model.parameters()]
    with pytest.raises(UserError, match=REFUSED[name][plugin]) as error:
        run(strategy, name, False)
    assert "\n" not in str(error.value)
    assert name in ("EWC", "SI", "MAS") or all(
        torch.equal(value, now) for value, now in zip(before, strategy.model.parameters(), strict=True)
    )


STREAMS = {
    "class": ("class", "growing", {}),
    "task": ("task", "multi-head", {}),
    "domain": ("domain", "fixed", {}),
    "online": ("online", "fixed", {}),
    "by iteration": ("class", "growing", {"peval_mode": "iteration"}),
}


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.parametrize("kind", STREAMS)
def test_every_plugin_lives_with_every_kind_of_stream(kind, plugin, monkeypatch):
    one, other = PLUGINS[plugin](), PLUGINS[plugin]()
    (scenario, network, settings), holds, passes = STREAMS[kind], Holds(one), OwnPasses(monkeypatch)
    strategy = passes.of(made("Naive", [one, holds], network=network, eval_every=1 if settings else 0, **settings))
    found = run(strategy, "Naive", True, scenario)
    assert acted(plugin, one) and passes.own == len(holds.inputs) and not passes.others
    assert not left_hooks(strategy.model)
    without = run(made("Naive", [other], network=network), "Naive", False, scenario)
    if network == "fixed":  # other heads grow in evaluations, too
        assert same(found, without) and other.history == one.history


@pytest.mark.parametrize("plugin", sorted(BETWEEN))
def test_what_acts_between_experiences_has_to_be_told_where_they_are(plugin):
    parts = split_online_stream(stream().train_stream, experience_size=8, access_task_boundaries=False)
    with pytest.raises(UserError, match="needs a stream that tells the boundaries of its experiences"):
        made("Naive", [PLUGINS[plugin]()]).train(next(iter(parts)))


@pytest.mark.parametrize("name", STRATEGIES)
def test_metrics_live_with_every_strategy(name, monkeypatch):
    passes = OwnPasses(monkeypatch)
    results = []
    for metrics in [], plasticity_metrics(minibatch=True, epoch=True, experience=True, stream=True):
        strategy = made(name, [])
        strategy.evaluator.metrics += metrics
        if metrics:
            passes.of(strategy)
        results.append(run(strategy, name, True))
    assert same(*results)
    assert passes.watched == passes.own > 0


def test_network_that_begins_anew_is_known_as_such():
    """Beside FromScratchTrainingPlugin nothing is kept of the network before."""
    removing = PLUGINS["synaptic-stripping-whitaker2023"]()
    at_start = []

    class Look(SupervisedPlugin):
        def before_training_epoch(self, strategy, **kwargs):
            at_start.append((removing.masks.removed(), [v.clone() for v in strategy.model.parameters()]))

    run(made("from scratch, then", [removing, Look()]), "Naive", False)
    assert [removed for removed, _ in at_start] == [0, 0, 0] and removing.masks.removed() > 0
    first = at_start[0][1]
    for _, weights in at_start[1:]:
        assert all(torch.equal(one, other) for one, other in zip(first, weights, strict=True))


def test_units_pruned_in_a_network_are_not_missing_in_the_one_that_gdumb_puts_in_its_place():
    plugin = PLUGINS["hyper-hypo-random"]()
    counts = []

    class Look(SupervisedPlugin):
        def before_training_epoch(self, strategy, **kwargs):
            counts.append(sum(int(mask.sum()) for mask in plugin.pruned.values()))

    run(made("GDumb", [plugin, Look()]), "GDumb", False)
    assert counts[0] == 0 and counts[1] == counts[2] > 0


def test_meta_learning_is_refused():
    model = NETWORKS["fixed"]()
    settings = {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "criterion": nn.CrossEntropyLoss()}
    strategy = lamaml_v2.LaMAML(model=model, plugins=[PLUGINS["l2"]()], **settings)
    with pytest.raises(UserError, match="inner loops that L2Plugin does not see"):
        strategy.train(stream().train_stream)


@pytest.mark.parametrize("plugin", ["continual-backprop", "self-normalized-resets", "gradient-dormancy"])
def test_a_strategy_that_runs_its_model_in_a_way_of_its_own_is_refused(plugin):
    class Own(supervised.Naive):
        def training_epoch(self, **kwargs):
            for self.mbatch in self.dataloader:  # noqa: B020  # as Avalanche writes it
                self._unpack_minibatch()
                self._before_forward(**kwargs)
                self.mb_output = self.model(self.mb_x)
                self._after_forward(**kwargs)
                self._after_update(**kwargs)

    model = NETWORKS["fixed"]()
    strategy = Own(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), plugins=[PLUGINS[plugin]()], train_mb_size=8
    )
    with pytest.raises(UserError, match="Own does not run its model by forward"):
        strategy.train(stream().train_stream)
