"""Input that is hardly any, or of another kind than was meant: it works, or is refused in one line."""

import pytest
import torch
from avalanche.benchmarks.scenarios.dataset_scenario import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from configurations import PLUGINS
from torch import nn
from torch.utils.data import TensorDataset

from plasticity import UnitGroup, find_units, watch
from plasticity.errors import UserError
from plasticity.groups import UnitGroups
from plasticity.loading import TensorLoaderPlugin
from plasticity.metrics import plasticity_metrics
from plasticity.surgery import silence

SOON = {
    "SynapticStrippingPlugin": {"every": "epoch"},
    "ReDoPlugin": {"every": 1},
    "GradientDormancyPlugin": {"every": 1, "batches": 1},
    "PlasticityInjectionPlugin": {"experience": 1},
}
"""Arguments with which a plugin acts on few samples."""


def samples(count, labels, seed):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.tensor([labels[number % len(labels)] for number in range(count)], dtype=torch.int64)
    data = TensorDataset(torch.randn(count, 4, generator=generator), targets)
    data.targets = targets.tolist()
    return as_classification_dataset(data)


def network(*norms):
    return nn.Sequential(nn.Linear(4, 6), *norms, nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def learn(plugins, train, test=(5, 5), *, model=None, labels=((0, 1, 2), (0, 1, 2)), tested=None, batch=4, **how):
    """Train on experiences of so many samples, with all metrics; returns the values of the last evaluation."""
    benchmark = benchmark_from_datasets(
        train=[samples(count, labels[i], i) for i, count in enumerate(train)],
        test=[samples(count, (tested or labels)[i], 9 + i) for i, count in enumerate(test)],
    )
    model = model or network()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=batch,
        eval_mb_size=batch,
        train_epochs=2,
        plugins=plugins,
        evaluator=EvaluationPlugin(
            plasticity_metrics(minibatch=True, epoch=True, experience=True, stream=True), loggers=[]
        ),
    )
    for experience in benchmark.train_stream:
        strategy.train(experience, **how)
        found = strategy.eval(benchmark.test_stream)
    return found


def made(name):
    return PLUGINS[name](**SOON.get(name, {}))


HARDLY_ANY = {
    "one sample": {"train": (1, 1)},
    "mini-batches of one": {"train": (3, 3), "batch": 1},
    "a last mini-batch of one": {"train": (5, 5)},
    "one class": {"train": (6, 6), "labels": ((1,), (1,))},
    "a test without samples": {"train": (5, 5), "test": (0, 5)},
    "a class missing in tests": {"train": (6, 6), "tested": ((0, 1), (0, 1))},
    "a class in tests alone": {"train": (6, 6), "labels": ((0, 1), (0, 1)), "tested": ((0, 1, 2), (2,))},
}


@pytest.mark.filterwarnings("ignore:No loggers specified:UserWarning:avalanche")
@pytest.mark.parametrize("name", sorted(PLUGINS))
def test_hardly_any_data_are_enough(name):
    for case, how in HARDLY_ANY.items():
        model = network()
        values = learn([made(name)], model=model, **how)
        assert values and all(bool(parameter.isfinite().all()) for parameter in model.parameters()), case


@pytest.mark.filterwarnings("ignore:No loggers specified:UserWarning:avalanche")
@pytest.mark.parametrize("name", sorted(PLUGINS))
@pytest.mark.parametrize("quick", [False, True])
def test_an_experience_without_samples_is_refused_by_number(name, quick):
    with pytest.raises(UserError, match=rf"{name}: experience 1 has no training samples") as error:
        learn([made(name), *([TensorLoaderPlugin()] if quick else [])], (5, 0))
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:No loggers specified:UserWarning:avalanche")
@pytest.mark.parametrize("name", sorted(PLUGINS))
def test_a_sample_that_training_leaves_out_before_batch_normalisation_is_not_looked_at_alone(name):
    learn([made(name)], (5, 5), model=network(nn.BatchNorm1d(6)), drop_last=True)


@pytest.mark.filterwarnings("ignore:No loggers specified:UserWarning:avalanche")
@pytest.mark.parametrize("name", sorted(PLUGINS))
def test_models_without_hidden_units_or_without_weights_yet_are_refused_or_trained(name):
    for model in (nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 3))):
        try:
            learn([made(name)], (5, 5), model=model)
        except UserError as error:
            assert "hidden units" in str(error) or "yet" in str(error)
            assert "\n" not in str(error)


# --- models and their inputs ------------------------------------------------------------------------------------------


class Takes(nn.Module):
    """Reads its input in a way of its own."""

    def __init__(self, read):
        super().__init__()
        self.a, self.b, self.read = nn.Linear(4, 6), nn.Linear(6, 3), read

    def forward(self, *inputs):
        return {"logits": self.b(torch.relu(self.a(self.read(*inputs))))}


X = torch.randn(2, 4)


@pytest.mark.parametrize(
    ("read", "example"),
    [
        (lambda d: d["x"], {"x": X}),
        (lambda d: d["x"], ({"x": X},)),
        (lambda parts: parts[0] + parts[1], [X, X]),
        (lambda a, b: a + b, (X, X)),
        (lambda x: x, torch.full((2, 4), float("nan"))),
    ],
)
def test_inputs_of_any_kind_are_followed(read, example):
    (group,) = find_units(Takes(read), example)
    assert group.private and [each.layer for each in group.consumers] == ["b"]


def test_models_without_parameters_or_hidden_units_have_no_groups():
    for model in (nn.ReLU(), nn.Identity(), nn.Sequential(), nn.Linear(4, 3)):
        units = find_units(model, X)
        assert len(units) == 0 and "no hidden units" in str(units)
        with watch(model, units) as activity:
            model(X)
        assert activity.statistics() == {}


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        ("model", X, "units are found in a module, and this is a str"),
        (torch.relu, X, "units are found in a module"),
        (network(), None, "must be Tensor, not NoneType"),
        (network(), X.numpy(), "must be Tensor, not numpy.ndarray"),
        (network(), X[:, :3], "shapes cannot be multiplied"),
        (network().to("meta"), X, "the model is on meta and the example on cpu: put both on one device"),
        (
            nn.Sequential(nn.LazyLinear(3)),
            X,
            "has no weights yet; run the model once before",
        ),
    ],
)
def test_what_cannot_be_followed_is_said(model, example, message):
    with pytest.raises(UserError, match=message) as error:
        find_units(model, example)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: UnitGroup("a", size="3", activation="relu", at="x"),
        lambda: UnitGroup("a", size=1.5, activation="relu", at="x"),
        lambda: UnitGroup("a", size=True, activation="relu", at="x"),
        lambda: UnitGroup("a", size=3, activation="relu", at="x", consumers=["b"]),
        lambda: UnitGroup("a", size=3, activation="relu", at="x", consumers=[("b", "1")]),
        lambda: UnitGroups(["a"]),
        lambda: UnitGroups(3),
        lambda: plasticity_metrics(epoch=True, tau="0.1"),
        lambda: plasticity_metrics(epoch=True, tau=float("nan")),
        lambda: plasticity_metrics(epoch=True, features="3"),
        lambda: plasticity_metrics(epoch=True, features=True),
        lambda: plasticity_metrics(epoch="no"),
        lambda: silence(network(), find_units(network(), X)["0"], [99]),
        lambda: silence(network(), find_units(network(), X)["0"], [0.5]),
        lambda: silence(network(), find_units(network(), X)["0"], "all"),
    ],
)
def test_values_of_other_kinds_are_refused(make):
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)
