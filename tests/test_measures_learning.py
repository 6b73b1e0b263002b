"""The gap to networks trained from scratch, and what one step takes away from a loss, against plain numbers."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from metric_cases import WIDTH, mlp, naive, stream

from plasticity.errors import UserError
from plasticity.measures import sample_plasticity, trainability_gap
from plasticity.metrics import learning_accuracies


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_gap_is_scratch_minus_accuracy_for_each_experience(kind):
    gap = trainability_gap(kind([0.9, 0.7, 0.5]), kind([0.9, 0.8, 0.95]))
    assert gap.dtype == torch.float64 and gap.tolist() == pytest.approx([0.0, 0.1, 0.45])


def test_gap_takes_matrices():
    generator = np.random.default_rng(0)
    learned, scratch = generator.random((2, 5, 5))
    expected = [scratch[i][i] - learned[i][i] for i in range(5)]
    assert trainability_gap(learned, scratch).tolist() == pytest.approx(expected)
    assert trainability_gap(learned.tolist(), scratch.diagonal().copy()).tolist() == pytest.approx(expected)


def test_gap_does_not_share_memory_and_lets_nan_through():
    scratch = torch.tensor([0.9, 0.8], dtype=torch.float64)
    gap = trainability_gap([0.0, math.nan], scratch)
    gap[0] = 7
    assert scratch[0] == 0.9 and math.isnan(gap[1])


@pytest.mark.parametrize(
    ("accuracies", "scratch", "problem"),
    [
        ([0.5], [0.5, 0.5], "accuracies are of 1 experiences, and scratch of 2"),
        ([], [], "accuracies must be one number"),
        ([0.5], 0.5, "scratch must be one number"),
        ([[0.5, 0.5]], [0.5], "square matrix"),
        ([[0.5], [0.5, 0.5]], [0.5], "accuracies must be numbers"),
        (["a"], [0.5], "accuracies must be numbers"),
        ([None], [0.5], "accuracies must be numbers"),
    ],
)
def test_gap_refuses_what_is_no_list_of_accuracies(accuracies, scratch, problem):
    with pytest.raises(UserError, match=problem) as caught:
        trainability_gap(accuracies, scratch)
    assert "\n" not in str(caught.value)


def test_gap_of_avalanche_runs():
    benchmark = stream(3, test=90)

    def make(rate):
        return naive(mlp(), accuracy_metrics(experience=True, stream=True), rate=rate)

    strategy = make(0.5)
    results, scratch, rows, references = [], [], [], []
    for number, experience in enumerate(benchmark.train_stream):
        strategy.train(experience)
        results.append(strategy.eval(benchmark.test_stream))
        fresh = make(0.02)
        fresh.train(experience)
        scratch.append(fresh.eval(benchmark.test_stream[number : number + 1]))
        for model, found in ((strategy.model, rows), (fresh.model, references)):
            right = [int(model(x[None]).argmax()) == y for x, y, _ in benchmark.test_stream[number].dataset.eval()]
            found.append(sum(right) / len(right))
    assert learning_accuracies(results) == pytest.approx(rows)
    gap = trainability_gap(learning_accuracies(results), learning_accuracies(scratch))
    assert gap.tolist() == pytest.approx([b - a for a, b in zip(rows, references, strict=True)])
    assert gap.count_nonzero() > 0


def test_the_examples_of_the_page_run():
    page = (Path(__file__).parent.parent / "docs" / "measures.md").read_text()
    names = {
        "benchmark": stream(2),
        "make_strategy": lambda: naive(mlp(), accuracy_metrics(experience=True)),
        "model": mlp(),
        "inputs": torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(0)),
        "labels": torch.arange(6),
        "nn": torch.nn,
    }
    names["strategy"] = names["make_strategy"]()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)
    assert len(names["gap"]) == 2 and 1 <= names["rank"] <= 6 and names["sharpness"] > 0
    assert names["metrics"][0].settings.measures[-1] == "SamplePlasticity"


def test_results_without_a_value_are_refused():
    result = {"Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000": 0.5, "Top1_Acc_Stream/eval_phase/test_stream": 0.1}
    assert learning_accuracies([result]) == [0.5]
    assert learning_accuracies([]) == []
    unlabelled = {"Top1_Acc_Exp/eval_phase/test_stream/Exp000": 0.25, "Loss_Exp/eval_phase/test_stream/Exp000": 2}
    assert learning_accuracies([unlabelled]) == [0.25] and learning_accuracies([unlabelled], "Loss_Exp") == [2.0]
    with pytest.raises(UserError, match=r"results\[1\] has no value named Top1_Acc_Exp/eval_phase/.../Exp001"):
        learning_accuracies([result, result])
    twice = result | {"Top1_Acc_Exp/eval_phase/train_stream/Task000/Exp000": 0.7}
    with pytest.raises(UserError, match=r"results\[0\] has 2 values"):
        learning_accuracies([twice])
    many = {f"Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp{i:03d}": i / 2000 for i in (1, 11, 101, 1001)}
    assert learning_accuracies([{**many, **result}, many]) == [0.5, 1 / 2000]


def slow_sample_plasticity(before, after, smallest):
    return max(1 - after / max(before, smallest), 0)


def test_sample_plasticity_equals_the_formula():
    generator = np.random.default_rng(0)
    before, after = generator.random((2, 50)) * 3
    before[:3], after[3:6], before[6], after[6] = 0.0, 0.0, 0.0, 0.0
    found = sample_plasticity(torch.tensor(before), torch.tensor(after), smallest=0.05)
    expected = [slow_sample_plasticity(b, a, 0.05) for b, a in zip(before, after, strict=True)]
    assert found.tolist() == pytest.approx(expected)
    assert found.min() >= 0 and found.max() == 1
    assert sample_plasticity(torch.tensor(2.0), torch.tensor(0.5)) == 0.75
    assert math.isnan(sample_plasticity(torch.tensor(math.nan), torch.tensor(0.5)))


@pytest.mark.parametrize("smallest", [0.0, -1.0, math.nan])
def test_sample_plasticity_needs_a_smallest_loss(smallest):
    with pytest.raises(UserError, match="smallest must be above 0"):
        sample_plasticity(torch.ones(1), torch.ones(1), smallest)
