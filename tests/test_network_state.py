"""What a network and its optimizer hold, saved by name and taken over by a network that was built anew."""

import copy
import io

import pytest
import torch
from avalanche.models import IncrementalClassifier, avalanche_forward
from avalanche.models.utils import avalanche_model_adaptation
from avalanche.training import Naive
from stripping_streams import MultiHead, Network, everything, same, stream
from torch import nn

from plasticity import UnitGroups, find_units
from plasticity.architecture import inject_plasticity
from plasticity.architecture.injected import Injection
from plasticity.errors import UserError
from plasticity.network_state import load_network_state, load_optimizer_state, network_state, optimizer_state
from plasticity.optim import UPGD
from plasticity.plugins import ReDoPlugin
from plasticity.surgery.removal import remove_units

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified:UserWarning:avalanche")
INPUTS = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4)
    )


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def learn(model, optimizer, steps=3):
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(INPUTS).square().mean().backward()
        optimizer.step()
    return model(INPUTS).detach()


def through_file(model, optimizer):
    buffer = io.BytesIO()
    torch.save({"network": network_state(model), "optimizer": optimizer_state(optimizer, model)}, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def taken_over(saved, model, optimizer):
    load_network_state(model, saved["network"])
    load_optimizer_state(optimizer, model, saved["optimizer"])


def grown_small(model, optimizer):
    """Remove units of both hidden layers."""
    units = find_units(model, INPUTS)
    remove_units(model, units, {"0": torch.tensor([1, 5, 6]), "3": torch.tensor([0])}, optimizer)


def injected(model, optimizer):
    inject_plasticity(model, INPUTS, optimizer, torch.Generator().manual_seed(1))


def nothing(model, optimizer):
    model[0].weight.requires_grad_(False)


@pytest.mark.parametrize(
    "make", [adam, lambda m: UPGD(m.parameters()), lambda m: torch.optim.SGD(m.parameters(), 0.1, 0.9)]
)
@pytest.mark.parametrize("change", [nothing, grown_small, injected])
def test_a_network_built_anew_goes_on(change, make):
    model = mlp()
    optimizer = make(model)
    learn(model, optimizer)
    change(model, optimizer)
    learn(model, optimizer)
    saved = through_file(model, optimizer)
    kept = copy.deepcopy(saved)
    expected = learn(model, optimizer)
    assert str(saved) == str(kept)  # a copy, once it was in a file
    other = mlp(seed=1)
    parameters = list(other.parameters())
    others = make(other)
    learn(other, others, steps=1)  # whatever it holds
    taken_over(saved, other, others)
    assert all(one is two for one, two in zip(parameters, other.parameters(), strict=True))
    assert torch.equal(learn(other, others), expected)
    assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in model.parameters()]
    assert (other[0].out_features, other[1].num_features) == (model[0].out_features, model[1].num_features)
    assert sum(isinstance(module, Injection) for module in other.modules()) == (change is injected)
    assert len(UnitGroups(find_units(other, INPUTS))) == 2


def test_heads_that_have_grown_after_an_injection():
    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(5, 8)
            self.act = nn.ReLU()
            self.mid = nn.Linear(8, 8)
            self.act2 = nn.ReLU()
            self.classifier = IncrementalClassifier(8, initial_out_features=2)

        def forward(self, x):
            return self.classifier(self.act2(self.mid(self.act(self.fc(x)))))

    inputs, experiences = torch.randn(7, 5), stream().train_stream
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(Growing().eval())
    one, other = models
    avalanche_model_adaptation(one, experiences[0])
    inject_plasticity(one, inputs)
    one(inputs)
    for experience in experiences[1:]:
        avalanche_model_adaptation(one, experience)
        one(inputs)
    assert len(one.classifier.classifier.weight) > 2
    saved = network_state(one)
    load_network_state(other, saved)
    assert torch.equal(one(inputs), other(inputs))
    assert same(list(network_state(other)["buffers"].values()), list(saved["buffers"].values()))
    other.train()
    assert other(inputs).shape == one(inputs).shape


def test_heads_of_tasks_have_to_be_there():
    experiences = stream(task_labels=True).train_stream
    torch.manual_seed(0)
    one, other = MultiHead(), MultiHead()
    for experience in experiences:
        avalanche_model_adaptation(one, experience)
    with pytest.raises(UserError, match=r"the network has no parameter '\w+\.classifiers\.\d"):
        load_network_state(other, network_state(one))
    for experience in experiences:
        avalanche_model_adaptation(other, experience)
    load_network_state(other, network_state(one))
    batch, tasks = torch.stack([experiences[2].dataset[n][0] for n in range(5)]), torch.full((5,), 2)
    assert torch.equal(avalanche_forward(one.eval(), batch, tasks), avalanche_forward(other.eval(), batch, tasks))


def test_what_does_not_fit_is_an_error_and_changes_nothing():
    model, optimizer = mlp(), adam(mlp())
    saved, before = network_state(model), copy.deepcopy(model.state_dict())
    for change, words in (
        (lambda s: s["parameters"].pop("3.bias"), "the saved network has no parameter '3.bias'"),
        (lambda s: s["parameters"].update(x=INPUTS), "the network has no parameter 'x'"),
        (lambda s: s["buffers"].update(x=INPUTS), "the network has no buffer 'x'"),
        (
            lambda s: s["parameters"].update({"3.bias": torch.zeros(10).double()}),
            "'3.bias' is torch.float32, the saved",
        ),
    ):
        wrong = copy.deepcopy(saved)
        change(wrong)
        with pytest.raises(UserError, match=words):
            load_network_state(model, wrong)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(UserError, match="parameters that are not the network's"):
        optimizer_state(optimizer, model)
    with pytest.raises(UserError, match="has no shape yet, and cannot be saved"):
        network_state(nn.Sequential(nn.LazyLinear(3)))
    state = optimizer_state(adam(model), model)
    with pytest.raises(UserError, match="has 2 groups of parameters, the saved one 1"):
        groups = [{"params": [model[0].weight]}, {"params": [model[0].bias]}]
        load_optimizer_state(torch.optim.SGD(groups, lr=0.1), model, state)
    with pytest.raises(UserError, match="the network has no parameter '5.weight'"):
        load_optimizer_state(adam(model[:4]), model[:4], state)


def test_an_avalanche_strategy_that_is_built_anew_goes_on():
    def built():
        torch.manual_seed(0)
        model, plugin = Network(), ReDoPlugin(every=3)
        return plugin, Naive(
            model=model,
            optimizer=adam(model),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=8,
            train_epochs=2,
            plugins=[plugin],
            evaluator=None,
        )

    experiences = stream().train_stream
    plugin, strategy = built()
    for experience in experiences[:2]:
        strategy.train(experience)
    saved, state = through_file(strategy.model, strategy.optimizer), plugin.state_dict()
    results = []
    for each, (going, its) in ((False, (strategy, plugin)), (True, built()[::-1])):
        if each:
            for experience in experiences[:2]:
                avalanche_model_adaptation(going.model, experience)
            taken_over(saved, going.model, going.optimizer)
            going.optimized_param_id = dict(going.model.named_parameters())
            its.load_state_dict(state)
        torch.manual_seed(5)
        going.train(experiences[2])
        results.append((everything(going), its.history))
    assert same(results[0][0], results[1][0]) and results[0][1] == results[1][1]
