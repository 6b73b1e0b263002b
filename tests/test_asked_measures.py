"""What a run measures only if it is asked to, against loops that do the same by hand."""

import copy
import json

import pytest
import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from plain_runs import plain_run
from torch import nn

from benchmarks import asked_measures, training
from benchmarks.asked_measures import curvature
from benchmarks.cli import main
from benchmarks.observing import Stopwatch
from benchmarks.settings import resolve
from benchmarks.training import train
from plasticity.errors import UserError
from plasticity.probe import Probe

EXPERIENCES = 2


def run(measure, **settings):
    return resolve("permuted-digits", "naive", 0, experiences=EXPERIENCES, epochs=1, measure=measure, **settings)


class Slow(SupervisedPlugin):
    """Takes the loss of every mini-batch before and after its step, on a copy of the network."""

    def __init__(self):
        super().__init__()
        self.shares = []

    def before_update(self, strategy, **kwargs):
        self.before = strategy._criterion(copy.deepcopy(strategy.model)(strategy.mb_x), strategy.mb_y).item()

    def after_update(self, strategy, **kwargs):
        after = strategy._criterion(copy.deepcopy(strategy.model)(strategy.mb_x), strategy.mb_y).item()
        self.shares.append(max(0.0, 1 - after / self.before))


def slow_sample_plasticity(settings):
    """Mean over the steps of each experience."""
    slow = Slow()
    stream, strategy = plain_run(settings, [slow])
    found = []
    for experience in stream.train_stream:
        strategy.train(experience)
        found.append(sum(slow.shares) / len(slow.shares))
        slow.shares = []
    return found


def test_sample_plasticity_equals_a_loop_and_changes_nothing_else(tmp_path):
    settings = run(["sample-plasticity"])
    found = train(settings, tmp_path / "metrics.jsonl")
    shares = [entry.pop("sample_plasticity") for entry in found["units"]]
    assert shares == pytest.approx(slow_sample_plasticity(settings), rel=1e-4)
    assert all(0 < share < 1 for share in shares)
    assert found["measures"].pop("sample_plasticity") == pytest.approx(sum(shares) / EXPERIENCES)
    other = train(run([]), tmp_path / "other.jsonl")
    assert other["measures"].pop("sample_plasticity") is None
    for result in (found, other):
        del result["seconds"], result["processor"]
    assert found == other


def test_sample_plasticity_is_not_timed():
    stopwatch = Stopwatch(torch.device("cpu"))
    plugin = asked_measures.SamplePlasticityPlugin(stopwatch)
    strategy = Naive(
        model=nn.Linear(2, 2),
        optimizer=None,
        criterion=nn.CrossEntropyLoss(),
        evaluator=EvaluationPlugin(loggers=[]),
    )
    strategy.mbatch = [torch.randn(4, 2), torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.long)]
    plugin.before_forward(strategy)
    strategy.mb_output = strategy.forward()
    plugin.after_forward(strategy)
    plugin.after_update(strategy)
    assert stopwatch.seconds < 0 and plugin.take() == 0.0  # no step, no gain
    assert plugin.take() is None


def quadratic(inputs, labels, model):
    """The dense Hessian of a linear layer's loss, and the Gram matrix of its samples' gradients."""
    weights = model.weight.detach()

    def loss(weights):
        return nn.functional.cross_entropy(inputs @ weights.reshape(model.weight.shape).T, labels)

    hessian = torch.autograd.functional.hessian(loss, weights.flatten())
    rows = []
    for x, y in zip(inputs, labels, strict=True):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[None]), y[None]).backward()
        rows.append(model.weight.grad.flatten().clone())
    gradients = torch.stack(rows)
    return float(torch.linalg.eigvalsh(hessian).max()), gradients @ gradients.T


def test_curvature_equals_dense_matrices():
    pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    model, inputs, labels = nn.Linear(5, 3, bias=False), torch.randn(12, 5), torch.randint(3, (12,))
    found = curvature(model, Probe([(inputs[:7],), (inputs[7:],)]), labels)
    eigenvalue, gram = quadratic(inputs, labels, model)
    values = torch.linalg.svdvals(gram)
    share = values / values.sum()
    rank = float(torch.exp(-(share * share.clamp(min=1e-30).log()).sum()))
    assert found["largest_hessian_eigenvalue"] == pytest.approx(eigenvalue, rel=1e-2)
    assert found["gradient_effective_rank"] == pytest.approx(rank, rel=1e-2)


def test_curvature_that_is_not_finite_is_none():
    pytest.importorskip("curvlinops")
    model = nn.Linear(5, 3)
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    found = curvature(model, Probe([(torch.randn(4, 5),)]), torch.zeros(4, dtype=torch.long))
    assert found == {"largest_hessian_eigenvalue": None, "gradient_effective_rank": None}


def test_curvature_of_a_run_is_compared(tmp_path, capsys):
    pytest.importorskip("curvlinops")
    command = ["run", "permuted-digits", "--strategies", "naive", "--seeds", "1", "--experiences", "1", "--epochs", "1"]
    assert main([*command, "--out", str(tmp_path), "--measure", "curvature,sample-plasticity"]) == 0
    folder = tmp_path / "permuted-digits" / "naive" / "seed-0"
    assert json.loads((folder / "config.json").read_text())["settings"]["measure"] == ["curvature", "sample-plasticity"]
    capsys.readouterr()
    assert main(["compare", str(tmp_path), "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["largest_hessian_eigenvalue"]["mean"] > 0 and row["gradient_effective_rank"]["mean"] > 1
    assert 0 < row["sample_plasticity"]["mean"] < 1
    assert main(["run", "--config", str(folder / "config.json"), "--out", str(tmp_path)]) == 0
    assert "1 were there already" in capsys.readouterr().out


def test_unknown_measures_and_a_missing_library_are_told_before_training(tmp_path, capsys, monkeypatch):
    command = ["run", "permuted-digits", "--strategies", "naive", "--seeds", "1", "--out", str(tmp_path)]
    assert main([*command, "--measure", "sharpness"]) == 2
    assert "unknown measure 'sharpness': there are sample-plasticity, curvature" in capsys.readouterr().err

    def missing():
        raise UserError("curvature is measured by curvlinops")

    monkeypatch.setattr(asked_measures, "available", missing)
    with pytest.raises(UserError, match="curvlinops"):
        training.check([run(["curvature"])])
