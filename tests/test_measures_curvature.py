"""Curvature through curvlinops, against the dense Hessian and one gradient after the other."""

import math
import sys

import pytest
import torch
from avalanche.models import IncrementalClassifier, MTSimpleMLP, MultiHeadClassifier
from torch import nn
from torch.func import functional_call

from plasticity import measures
from plasticity.errors import UserError
from plasticity.measures import gradient_effective_rank, largest_hessian_eigenvalue

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch|curvlinops")


def heads():
    """Two heads of three classes, all of them in use; Avalanche's are of float32."""
    model = MTSimpleMLP(input_size=5, hidden_size=6)
    model.classifier = MultiHeadClassifier(6, 3, masking=False)
    model.classifier.classifiers["1"] = IncrementalClassifier(6, 3, masking=False)
    return model


def frozen():
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    model[0].requires_grad_(False)
    return model


MODELS = {
    "smooth": lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double(),
    "rectified": lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double(),
    "normalised, with dropout": lambda: nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Sigmoid(), nn.Dropout(), nn.Linear(6, 3)
    ).double(),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)
    ).double(),
    "partly frozen": frozen,
    "a head for each task": heads,
}


def data(model, samples=12):
    generator = torch.Generator().manual_seed(3)
    inputs = (torch.randn(samples, 5, generator=generator).to(next(model.parameters())),)
    if isinstance(model, MTSimpleMLP):
        inputs += (torch.arange(samples) % 2,)
    return inputs, torch.randint(3, (samples,), generator=generator)


def batches(inputs, targets, *sizes):
    """The same samples in batches; a single input stands alone, as it may."""
    parts = zip(*(column.split(sizes) for column in (*inputs, targets)), strict=True)
    return [(tuple(part[:-1]) if len(part) > 2 else part[0], part[-1]) for part in parts]


def dense_hessian(model, loss, inputs, targets):
    """All second derivatives, one row after the other."""
    model.eval()
    trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def of(vector):
        parts = vector.split([p.numel() for p in trained.values()])
        values = {name: part.view(p.shape) for part, (name, p) in zip(parts, trained.items(), strict=True)}
        return loss(functional_call(model, values, inputs), targets)

    vector = torch.cat([p.flatten() for p in trained.values()]).requires_grad_()
    (gradient,) = torch.autograd.grad(of(vector), vector, create_graph=True)
    return torch.stack([torch.autograd.grad(each, vector, retain_graph=True)[0] for each in gradient])


def slow_gram(model, loss, inputs, targets):
    """One backward pass for each sample, and every inner product."""
    model.eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = []
    for row in range(len(targets)):
        one = slice(row, row + 1)
        value = loss(model(*(column[one] for column in inputs)), targets[one])
        found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
        gradients.append(torch.cat([part.flatten() for part in found]))
    return torch.tensor([[float(a @ b) for b in gradients] for a in gradients], dtype=torch.float64)


def made(kind):
    torch.manual_seed(1)
    return MODELS[kind]()


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum")], ids=["mean", "sum"])
@pytest.mark.parametrize("kind", MODELS)
def test_eigenvalue_is_that_of_the_dense_hessian(kind, loss):
    model = made(kind)
    inputs, targets = data(model)
    hessian = dense_hessian(model, loss, inputs, targets)
    expected = torch.linalg.eigvalsh(hessian)[-1]
    assert expected > 1e-3
    found = largest_hessian_eigenvalue(model, loss, batches(inputs, targets, 5, 7), tolerance=1e-4)
    assert found.shape == () and found.dtype == torch.float64
    assert float(found) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("kind", MODELS)
def test_rank_is_that_of_the_gram_matrix(kind):
    model, loss = made(kind), nn.CrossEntropyLoss()
    inputs, targets = data(model)
    expected = float(measures.effective_rank(slow_gram(model, loss, inputs, targets)))
    assert 1.2 < expected < 12
    for columns, sizes in ((1, (12,)), (5, (3, 4, 5)), (100, (12,))):
        found = gradient_effective_rank(model, loss, batches(inputs, targets, *sizes), columns=columns)
        assert found.shape == () and float(found) == pytest.approx(expected, rel=1e-5)


def test_regression():
    model, loss = made("smooth"), nn.MSELoss()
    inputs, _ = data(model)
    targets = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hessian = dense_hessian(model, loss, inputs, targets)
    found = largest_hessian_eigenvalue(model, loss, batches(inputs, targets, 12), tolerance=1e-6)
    assert float(found) == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-6)
    gram = slow_gram(model, loss, inputs, targets)
    rank = gradient_effective_rank(model, loss, batches(inputs, targets, 12))
    assert float(rank) == pytest.approx(float(measures.effective_rank(gram)), rel=1e-9)


def test_the_largest_is_not_the_one_of_largest_magnitude():
    class Saddle(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64))

        def forward(self, x):
            return (self.weight**2 * torch.tensor([-5.0, 1.0, 2.0], dtype=torch.float64)).sum() * x

    class Sum(nn.Module):
        reduction = "sum"

        def forward(self, output, targets):
            return output.sum()

    found = largest_hessian_eigenvalue(Saddle(), Sum(), [(torch.ones(1, 1).double(), torch.zeros(1))], tolerance=1e-9)
    assert float(found) == pytest.approx(4.0)


@pytest.mark.parametrize("bias", [False, True])
def test_one_or_two_parameters(bias):
    model = nn.Linear(1, 1, bias=bias).double()
    inputs, targets = torch.tensor([[1.0], [3.0]]).double(), torch.zeros(2, 1).double()
    hessian = dense_hessian(model, nn.MSELoss(), (inputs,), targets)
    found = largest_hessian_eigenvalue(model, nn.MSELoss(), [(inputs, targets)])
    assert float(found) == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]))


def test_flat_and_diverged_networks():
    model = made("rectified")
    inputs, targets = data(model)
    samples = batches(inputs, targets, 12)
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.fill_(0.0)
        model[2].bias[0] = 1e4  # saturated
    targets.zero_()
    assert float(largest_hessian_eigenvalue(model, nn.CrossEntropyLoss(), samples)) == 0.0
    assert float(gradient_effective_rank(model, nn.CrossEntropyLoss(), samples)) == 0.0
    with torch.no_grad():
        model[0].weight[0] = math.nan
        model[2].weight.fill_(1.0)
    assert math.isnan(largest_hessian_eigenvalue(model, nn.CrossEntropyLoss(), samples))
    assert math.isnan(gradient_effective_rank(model, nn.CrossEntropyLoss(), samples))


def test_the_network_is_left_as_it_was():
    model = made("normalised, with dropout")
    inputs, targets = data(model)
    model.train()
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    results = [
        [
            float(largest_hessian_eigenvalue(model, nn.CrossEntropyLoss(), batches(inputs, targets, 12))),
            float(gradient_effective_rank(model, nn.CrossEntropyLoss(), batches(inputs, targets, 12))),
        ]
        for _ in range(2)
    ]
    assert results[0] == results[1]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert [module.training for module in model] == [True, False, True, True, True] and model.training
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight)) and model[0].bias.grad is None


def test_what_is_missing_or_impossible_is_one_clear_line(monkeypatch):
    model = made("smooth")
    inputs, targets = data(model)
    samples = batches(inputs, targets, 12)
    wrong = [(torch.zeros(2, 9).double(), targets[:2])]
    for measure in (largest_hessian_eigenvalue, gradient_effective_rank):
        for problem, arguments in (
            ("must not weigh classes", (model, nn.CrossEntropyLoss(torch.ones(3)), samples)),
            ("must be one of torch.nn with a reduction", (model, lambda output, target: 0.0, samples)),
            ("there are none", (model, nn.CrossEntropyLoss(), [])),
            ("there are none", (model, nn.CrossEntropyLoss(), [(inputs[0][:0], targets[:0])])),
            ("Flatten has no parameters to train", (nn.Flatten(), nn.CrossEntropyLoss(), samples)),
            ("cannot follow Sequential: addmm: mat1 and mat2", (model, nn.CrossEntropyLoss(), wrong)),
        ):
            with pytest.raises(UserError, match=problem) as caught:
                measure(*arguments)
            assert "\n" not in str(caught.value)
        with monkeypatch.context() as without:
            without.setitem(sys.modules, "curvlinops", None)
            with pytest.raises(UserError, match=r'pip install "avalanche-plasticity\[curvature\]"'):
                measure(model, nn.CrossEntropyLoss(), samples)
    with pytest.raises(UserError, match="columns must be at least 1"):
        gradient_effective_rank(model, nn.CrossEntropyLoss(), samples, columns=0)


def test_iterations_that_do_not_end_are_told(monkeypatch):
    import scipy.sparse.linalg as linalg

    def fail(*arguments, **settings):
        raise linalg.ArpackNoConvergence("No convergence (1 iterations, 0/1 eigenvectors converged)", [], [])

    monkeypatch.setattr(linalg, "eigsh", fail)
    model = made("smooth")
    with pytest.raises(UserError, match="raise the tolerance"):
        largest_hessian_eigenvalue(model, nn.CrossEntropyLoss(), batches(*data(model), 12))
