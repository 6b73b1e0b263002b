"""Plugins beside groups of parameters with settings of their own, and beside schedulers."""

import pytest
import torch
from avalanche.training.plugins import LRSchedulerPlugin, SupervisedPlugin
from exclusion_cases import LAYERS, MAKE, equal, of_layer, trained
from stripping_streams import FixedHead, Network, everything, same
from torch import nn

from plasticity import plugins
from plasticity.architecture import with_crelu
from plasticity.optim import UPGD

LOSS = nn.CrossEntropyLoss()
SETTINGS = ({"lr": 0.05, "weight_decay": 0.1}, {"lr": 0.01, "weight_decay": 0.0}, {"lr": 0.0, "weight_decay": 0.5})
EACH = pytest.mark.parametrize("name", list(MAKE))


def in_groups(model, kind, *settings, **common):
    """An optimizer with a group for each layer; settings of each group, or none."""
    layers = [list(model.get_submodule(layer).parameters()) for layer in LAYERS]
    own = settings or ({},) * len(layers)
    return kind([{"params": group, **each} for group, each in zip(layers, own, strict=True)], **common)


def made(name):
    """A plugin; plasticity is injected into a part of the network that is one layer."""
    return MAKE[name](**({"head": ["classifier"]} if name == "PlasticityInjectionPlugin" else {}))


def by_name(strategy):
    """The tensors of a strategy, in the order of the model's parameters."""
    state = strategy.optimizer.state
    held = [list(state.get(parameter, {}).values()) for parameter in strategy.model.parameters()]
    return [*strategy.model.state_dict().values(), *(torch.as_tensor(each) for part in held for each in part)]


@EACH
def test_groups_of_equal_settings_are_as_one(name):
    def adam(groups):
        def make(model):
            kind = torch.optim.AdamW
            return in_groups(model, kind, lr=0.01) if groups else kind(model.parameters(), lr=0.01)

        return make

    one = trained(made(name), criterion=LOSS, optimizer=adam(False))
    several = trained(made(name), criterion=LOSS, optimizer=adam(True))
    assert len(several.optimizer.param_groups) == 3
    assert same(by_name(one), by_name(several))


@EACH
def test_groups_keep_their_parameters_and_settings(name):
    """Objects, order and numbers stay; state has the shapes of its parameters, also of those that have shrunk."""
    held = []

    def make(model):
        optimizer = in_groups(model, torch.optim.SGD, *SETTINGS, momentum=0.9)
        held.extend(list(group["params"]) for group in optimizer.param_groups)
        return optimizer

    strategy = trained(made(name), criterion=LOSS, optimizer=make)
    groups = strategy.optimizer.param_groups
    assert [{key: group[key] for key in ("lr", "weight_decay")} for group in groups] == list(SETTINGS)
    for group, parameters, layer in zip(groups, held, LAYERS, strict=True):
        present = [p for key, p in strategy.model.get_submodule(layer).named_parameters() if "injection" not in key]
        assert all(a is b is c for a, b, c in zip(group["params"], parameters, present, strict=True))
        for parameter in parameters:
            momentum = strategy.optimizer.state.get(parameter, {}).get("momentum_buffer")
            assert momentum is None or momentum.shape == parameter.shape


@pytest.mark.parametrize("name", ["L2Plugin", "L2InitPlugin"])
def test_a_penalty_pulls_each_layer_at_its_own_rate(name):
    """On a flat loss, plain gradient descent leaves 1 - 2 lr s of the distance, step by step."""
    rates = (0.1, 0.02, 0.0)
    plain = trained(None, rate=0.0)
    strategy = trained(
        getattr(plugins, name)(0.5),
        optimizer=lambda model: in_groups(model, torch.optim.SGD, *({"lr": rate} for rate in rates)),
        moved=False,
    )
    torch.manual_seed(0)
    first = dict(FixedHead().named_parameters())
    for rate, layer in zip(rates, LAYERS, strict=True):
        for key, parameter in strategy.model.get_submodule(layer).named_parameters():
            start = first[f"{layer}.{key}"].detach().double()
            target = start if name == "L2InitPlugin" else torch.zeros_like(start)
            expected = target + (start - target) * (1 - 2 * rate * 0.5) ** 6
            torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-7)
    assert plain is not strategy


@pytest.mark.parametrize("name", ["SynapticStrippingPlugin", "HyperHypoPlugin, prune", "DemonPruningPlugin"])
def test_what_is_removed_stays_so_beside_decay_and_momentum_of_a_group(name):
    plugin = made(name)
    strategy = trained(
        plugin,
        criterion=LOSS,
        optimizer=lambda model: in_groups(model, torch.optim.SGD, *SETTINGS, momentum=0.9, nesterov=True),
    )
    assert len(plugin.masks)
    for layer in plugin.masks:
        weight = strategy.model.get_submodule(layer).weight
        assert not weight[~plugin.masks.kept(strategy.model, layer)].any()


class Rates(SupervisedPlugin):
    """Notes the rate of every group in every iteration."""

    def __init__(self):
        super().__init__()
        self.rates = []

    def before_update(self, strategy, **kwargs):
        self.rates.append([group["lr"] for group in strategy.optimizer.param_groups])


class Stepping(SupervisedPlugin):
    """Steps one of PyTorch's schedulers as a loop of one's own does."""

    def __init__(self, scheduler):
        super().__init__()
        self.scheduler = scheduler

    def after_training_iteration(self, strategy, **kwargs):
        self.scheduler.step()


SCHEDULERS = {
    "torch's, one cycle": lambda o: Stepping(
        torch.optim.lr_scheduler.OneCycleLR(o, max_lr=[0.05, 0.01, 0.001], total_steps=10)
    ),
    "avalanche's": lambda o: LRSchedulerPlugin(
        torch.optim.lr_scheduler.StepLR(o, 2, gamma=0.5), step_granularity="iteration"
    ),
    "avalanche's, by the loss": lambda o: LRSchedulerPlugin(
        torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=1e9), metric="train_loss", reset_lr=False
    ),
}


@pytest.fixture(scope="module")
def rates():
    """How rates go where there is no plugin of ours."""
    return {scheduler: scheduled(None, scheduler) for scheduler in SCHEDULERS}


def scheduled(plugin, scheduler):
    seen = Rates()
    trained(
        plugin,
        criterion=LOSS,
        optimizer=lambda model: in_groups(model, torch.optim.Adam, {"lr": 0.02}, {"lr": 0.01}, {"lr": 0.005}),
        beside=(SCHEDULERS[scheduler], lambda optimizer: seen),
    )
    return seen.rates


@EACH
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_schedulers_go_on_as_without_the_plugin(name, rates):
    for number, scheduler in enumerate(SCHEDULERS):
        if number != list(MAKE).index(name) % 3:  # each plugin with one of them
            continue
        more = {"dry_run": True} if number == 0 else {}
        head = {"head": ["classifier"]} if name == "PlasticityInjectionPlugin" else {}
        assert scheduled(MAKE[name](**head, **more), scheduler) == rates[scheduler]
        assert len({tuple(each) for each in rates[scheduler]}) > 1


def test_dry_runs_beside_every_scheduler(rates):
    """They copy the optimizer, whose step a scheduler has replaced by its own."""
    for scheduler, expected in rates.items():
        plugin = plugins.ShrinkPerturbPlugin(dry_run=True)
        assert scheduled(plugin, scheduler) == expected
        assert len(plugin.history) == 1


@pytest.mark.parametrize("name", ["ReDoPlugin", "L2InitPlugin", "ShrinkPerturbPlugin", "HareTortoisePlugin"])
def test_a_head_that_grows_stays_in_its_group(name):
    def make(model):
        return in_groups(model, torch.optim.SGD, *SETTINGS, momentum=0.9)

    strategy = trained(MAKE[name](), Network, criterion=LOSS, optimizer=make)
    *_, head = strategy.optimizer.param_groups
    assert all(one is other for one, other in zip(head["params"], strategy.model.classifier.parameters(), strict=True))
    assert len(head["params"][0]) == 4 and head["weight_decay"] == 0.5


def test_upgd_over_groups():
    """The largest utility is that of all groups; one that is left to plain gradient descent is excluded."""
    one = trained(None, criterion=LOSS, optimizer=lambda model: UPGD(model.parameters(), lr=0.1))
    several = trained(None, criterion=LOSS, optimizer=lambda model: in_groups(model, UPGD, lr=0.1))
    assert same(by_name(one), by_name(several))

    alone = {"protect": False, "sigma": 0.0, "utility": "local"}
    left = trained(
        None,
        criterion=LOSS,
        rate=0.0,
        optimizer=lambda model: in_groups(model, UPGD, {"lr": 0.0}, {"lr": 0.0}, {"lr": 0.1, **alone}),
    )
    plain = trained(
        None,
        criterion=LOSS,
        optimizer=lambda model: in_groups(model, torch.optim.SGD, {"lr": 0.0}, {"lr": 0.0}, {"lr": 0.1}),
    )
    assert same(list(left.model.state_dict().values()), list(plain.model.state_dict().values()))


def test_networks_with_crelu():
    def build():
        model = FixedHead()
        return with_crelu(model, torch.rand(4, 8))

    def adam(groups):
        return lambda model: (
            in_groups(model, torch.optim.Adam, lr=0.01) if groups else torch.optim.Adam(model.parameters(), lr=0.01)
        )

    one, several = (trained(MAKE["ReDoPlugin"](), build, LOSS, optimizer=adam(groups)) for groups in (False, True))
    assert same(by_name(one), by_name(several)) and len(several.optimizer.param_groups) == 3


def test_excluding_a_layer_leaves_its_group_alone():
    """With a rate of 0 in its group the excluded layer never moves, and its optimizer state is that of training."""

    def make(model):
        return in_groups(model, torch.optim.SGD, {"lr": 0.1}, {"lr": 0.1}, {"lr": 0.0})

    plain = trained(None, criterion=LOSS, optimizer=make, moved=False)
    for name in ("ShrinkPerturbPlugin", "FIREPlugin", "ReDoPlugin", "AdaptivePlugin"):
        strategy = trained(MAKE[name](exclude="classifier"), criterion=LOSS, optimizer=make, moved=False)
        assert equal(of_layer(strategy, "classifier"), of_layer(plain, "classifier"))
        assert not same(everything(strategy), everything(plain))
