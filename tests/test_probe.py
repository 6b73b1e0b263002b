"""The probe holds the training samples asked for and leaves the network as it was."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from plasticity import find_units, watch
from plasticity.errors import UserError
from plasticity.probe import Probe, RecentInputs, balanced, output_shift


def network():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 5)
    )


def batches(*sizes):
    return [(torch.randn(size, 2, 6, 6),) for size in sizes]


def by_hand(model, found):
    """The outputs in eval mode, sample by sample."""
    model = model.eval()
    with torch.no_grad():
        return torch.cat([model(x[i : i + 1]) for (x, *_) in found for i in range(len(x))])


def test_outputs_are_those_in_eval_mode_and_nothing_changes():
    model, found = network(), batches(6, 3)
    model[1].eval()  # a user's frozen normaliser in a network that trains
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    outputs = Probe(found).outputs(model)
    activity, watched = Probe(found).watch(model, find_units(model, found[0]), inputs=True)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not outputs.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(outputs, watched)
    torch.testing.assert_close(outputs, by_hand(model, found))
    with watch(model, find_units(model, found[0]), inputs=True) as other, torch.no_grad():
        for batch in found:
            model(*batch)
    assert torch.equal(activity.statistics()["0"].fired, other.statistics()["0"].fired)
    assert torch.equal(activity.input_means()["0"], other.input_means()["0"])
    assert activity.statistics()["0"].count == 9 * 16


def test_modes_return_after_an_error():
    model = network()
    model[4].eval()
    with pytest.raises(RuntimeError):
        Probe([(torch.randn(2, 3, 6, 6),)]).outputs(model)
    assert [module.training for module in model] == [True, True, True, True, False, True]


def test_samples_and_example():
    found = batches(2, 7, 1)
    probe = Probe(found)
    assert probe.samples == 10
    assert torch.equal(probe.example()[0], found[1][0][:4])
    assert torch.equal(probe.example(100)[0], found[1][0])
    labels = torch.arange(3)
    example = Probe([(torch.randn(3, 2), labels, torch.ones(5), "task", torch.tensor(1))]).example(2)
    assert [getattr(part, "shape", part) for part in example] == [(2, 2), (2,), (5,), "task", ()]
    for use in Probe([]).example, lambda: Probe([]).outputs(network()):
        with pytest.raises(UserError, match="no training mini-batch"):
            use()
    assert Probe([]).samples == 0


def test_joined_probes_hold_the_same_samples_in_the_same_order():
    found = [(x, torch.arange(len(x)) + 100 * i) for i, (x,) in enumerate(batches(3, 4, 1, 5))]
    probe = Probe.joined(found, size=5)
    assert [len(batch[0]) for batch in probe.batches] == [5, 5, 3]
    for column in 0, 1:
        together = torch.cat([batch[column] for batch in found])
        assert torch.equal(torch.cat([batch[column] for batch in probe.batches]), together)
    assert probe.samples == 13
    assert Probe.joined([]).samples == 0


@pytest.mark.parametrize(
    "found",
    [
        [(torch.ones(2, 3), 7), (torch.ones(2, 3), 8)],  # a task for the whole batch
        [(torch.ones(2, 3),), (torch.ones(2, 4),)],
        [(torch.ones(2, 3), torch.ones(5)), (torch.ones(2, 3), torch.ones(5))],  # not one entry for each sample
    ],
)
def test_batches_that_do_not_fit_together_stay_as_they_are(found):
    probe = Probe.joined(found)
    assert len(probe.batches) == 2
    for batch, other in zip(probe.batches, found, strict=True):
        assert all(part is same for part, same in zip(batch, other, strict=True))


@pytest.mark.parametrize(
    "wrap",
    [lambda y: (y, None), lambda y: {"tasks": 3, "logits": y}, lambda y: y.view(2, 1, 5), lambda y: y.double()],
)
def test_outputs_of_other_forms(wrap):
    class Wrapped(nn.Module):
        def forward(self, x):
            return wrap(x)

    x = torch.randn(2, 5)
    assert torch.equal(Probe([(x,), (x,)]).outputs(Wrapped()), torch.cat([x, x]))


def test_a_model_without_a_tensor_in_its_output_is_refused():
    class Silent(nn.Module):
        def forward(self, x):
            return "nothing"

    with pytest.raises(UserError, match="str"):
        Probe(batches(2)).outputs(Silent())


# The latest inputs


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 20), st.integers(1, 20))
def test_the_latest_samples_are_kept_and_no_more_than_asked_for(sizes, limit, later):
    recent, stream = RecentInputs(limit), []
    for size in sizes:
        numbers = torch.arange(len(stream), len(stream) + size)
        recent.add((numbers, numbers * 10))
        stream += numbers.tolist()
    for now in limit, later:  # the limit may change between two experiences
        recent.limit = now
        now = min(now, limit)
        probe = recent.probe()
        kept = [int(number) for batch in probe.batches for number in batch[0]]
        assert kept == stream[-now:]
        assert [int(number) for batch in probe.batches for number in batch[1]] == [10 * number for number in kept]
        assert probe.samples == len(kept) <= now
    assert recent.samples == min(len(stream), limit)


def test_inputs_are_cut_off_from_their_graph_and_other_arguments_kept():
    recent = RecentInputs(3)
    recent.add((torch.ones(2, 2, requires_grad=True) * 2, 5))
    recent.add((torch.zeros(2, 2), 6))
    found = recent.batches()
    assert [(len(x), task, x.requires_grad) for x, task in found] == [(1, 5, False), (2, 6, False)]
    assert [batch[1] for batch in recent.probe("cpu").batches] == [5, 6]
    assert recent.probe("meta").batches[0][0].device.type == "meta"


# How far outputs moved


def test_output_shift_against_numpy():
    before, after = np.random.randn(50, 7), np.random.randn(50, 7)
    expected = np.linalg.norm(after - before, axis=1).mean() / np.linalg.norm(before, axis=1).mean()
    assert output_shift(torch.tensor(before), torch.tensor(after)) == pytest.approx(expected)
    hidden = np.full((50, 2), -1000.0)  # of classes that a head hides
    padded = [torch.tensor(np.concatenate([hidden, part], axis=1)) for part in (before, after)]
    assert output_shift(*padded) == pytest.approx(expected)
    assert output_shift(padded[0], padded[0]) == 0
    shown = padded[1].clone()
    shown[:, 0] = 0.0  # no longer hidden: that is a shift
    assert output_shift(padded[0], shown) > 0.9


def test_output_shift_of_outputs_that_were_all_zero():
    assert output_shift(torch.zeros(4, 3), torch.full((4, 3), 2.0)) == pytest.approx(12**0.5)
    assert output_shift(torch.zeros(4, 3), torch.zeros(4, 3)) == 0


def balanced_by_hand(labels, size):
    """Take the latest sample of every class in turn, the class whose sample is later first, until there are enough."""
    waiting = {}
    for number, label in enumerate(labels):
        waiting.setdefault(label, []).append(number)
    chosen = []
    while sum(map(len, chosen)) < size and any(waiting.values()):
        turn = sorted((numbers.pop() for numbers in waiting.values() if numbers), reverse=True)
        chosen.append(turn)
    return chosen


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [1, 7, 20, 29, 30, 50])
def test_a_balanced_choice_takes_the_latest_of_each_class_in_turn(size, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(30, generator=generator) ** 2 * 5).long()  # the first classes have more
    numbers = torch.arange(30)
    found = torch.cat(
        [rows for (rows,) in balanced(Probe([(part,) for part in numbers.split(8)]), labels, size).batches]
    )
    assert found.tolist() == sorted(found.tolist()) and len(found) == min(size, 30)
    turns = balanced_by_hand(labels.tolist(), size)
    whole = {number for turn in turns[:-1] for number in turn}
    assert whole <= set(found.tolist()) <= whole | set(turns[-1])  # who comes first in the last turn is left open


@pytest.mark.parametrize("labels", [torch.zeros(30), torch.zeros(30, 2, dtype=torch.int64), torch.empty(0)])
def test_without_classes_the_latest_are_taken(labels):
    chosen = balanced(Probe([(torch.arange(30),)]), labels, 8)
    assert torch.cat([rows for (rows,) in chosen.batches]).tolist() == list(range(22, 30))
