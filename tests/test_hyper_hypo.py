"""Hyper- and hypo-units: which are chosen, against numpy; which weights are theirs; mistakes."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hyper_hypo_runs import (
    choose,
    mlp,
    numpy_ends,
    statistics,
)
from torch import nn

from plasticity import find_units
from plasticity.errors import UserError
from plasticity.groups import UnitGroup, UnitGroups, Write
from plasticity.methods.hyper_hypo import choose_entries, incoming_entries, keep_pruned, prune_units
from plasticity.methods.hyper_hypo_units import HyperHypoRule, Selection, saliency, select_units
from plasticity.plugins import HyperHypoPlugin
from plasticity.probe import Probe
from plasticity.surgery.masks import Masks


@pytest.mark.parametrize("percent", [0, 0.1, 5, 12.5, 33, 50])
@pytest.mark.parametrize("kind", ["frequency", "mean_abs"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 30, 100])
def test_percentiles_agree_with_numpy_also_among_equals(size: int, kind: str, percent: float) -> None:
    generator = np.random.default_rng(size)
    fired = generator.integers(0, 6, size)  # few values, so that many are equal
    magnitude = generator.integers(0, 6, size) / 4
    gone = generator.random(size) < 0.2
    stats = {"a": statistics(fired.tolist(), 5, magnitude.tolist())}
    found = choose(stats, HyperHypoRule(saliency=kind, percent=percent), without={"a": torch.tensor(gone)})["a"]
    left = [unit for unit in range(size) if not gone[unit]]
    mean = magnitude[~gone].mean() if left else 0
    score = fired / 5 if kind == "frequency" else magnitude / mean if mean > 0 else np.zeros(size)
    hyper, hypo = numpy_ends(score, left, percent)
    assert found.hyper.tolist() == hyper and found.hypo.tolist() == hypo
    assert found.chosen.tolist() == hyper + hypo
    assert len(set(hyper + hypo)) == len(hyper + hypo) and (percent == 0 or len(left) < 2 or hyper)


def test_saliency_is_what_its_docstring_says() -> None:
    stat = statistics([0, 19, 20], 20, [0.0, 1.0, 5.0])
    assert saliency(stat).tolist() == [0, 0.95, 1]
    assert saliency(stat, "mean_abs").tolist() == [0, 0.5, 2.5]
    assert saliency(stat, "mean_abs", torch.tensor([False, True, True])).tolist() == [0, 1 / 3, 5 / 3]
    assert saliency(statistics([0, 0], 4, [0.0, 0.0]), "mean_abs").tolist() == [0, 0]
    broken = saliency(statistics([1, 1, 1], 4, [1.0, math.inf, 3.0]), "mean_abs")
    assert broken[[0, 2]].tolist() == [0.5, 1.5] and broken[1].isnan()
    chosen = choose({"a": statistics([1, 1, 1], 4, [1.0, math.nan, 3.0])}, HyperHypoRule(saliency="mean_abs"))["a"]
    assert chosen.hyper.tolist() == [2] and chosen.hypo.tolist() == [0]


def test_bounds_take_what_is_at_them_or_beyond() -> None:
    stats = {"a": statistics([0, 1, 2, 10, 19, 20, 20], 20), "b": statistics([10, 11], 20)}
    found = choose(stats, HyperHypoRule(select="bounds"))
    assert found["a"].hyper.tolist() == [5, 6, 4] and found["a"].hypo.tolist() == [0, 1]
    assert found["b"].chosen.tolist() == []
    found = choose(stats, HyperHypoRule(select="bounds", low=0.1, high=1.0))
    assert found["a"].hyper.tolist() == [5, 6] and found["a"].hypo.tolist() == [0, 1, 2]
    magnitudes = {"a": statistics([0] * 4, 1, [0.0, 1.0, 1.0, 6.0])}
    found = choose(magnitudes, HyperHypoRule(saliency="mean_abs", select="bounds", low=0.1, high=3.0))
    assert found["a"].hyper.tolist() == [3] and found["a"].hypo.tolist() == [0]


def test_either_end_and_a_random_choice_of_the_same_size() -> None:
    stats = {"a": statistics(list(range(60)), 60), "b": statistics(list(range(20)), 60), "c": statistics([0, 0], 0)}
    both = choose(stats, HyperHypoRule(percent=10))
    assert set(both) == {"a", "b"}  # what was not observed is not judged
    assert choose(stats, HyperHypoRule(percent=10, units="hyper"))["a"].chosen.tolist() == list(range(59, 53, -1))
    assert choose(stats, HyperHypoRule(percent=10, units="hypo"))["a"].chosen.tolist() == list(range(6))
    rule = HyperHypoRule(percent=10, units="random")
    drawn, again, other = choose(stats, rule), choose(stats, rule), choose(stats, rule, seed=1)
    for name in both:
        assert len(set(drawn[name].chosen.tolist())) == len(both[name].chosen)
        assert drawn[name].chosen.tolist() == again[name].chosen.tolist()
        assert drawn[name].hyper.tolist() == both[name].hyper.tolist()
    assert set(drawn["a"].chosen.tolist()) != set(both["a"].chosen.tolist())
    assert drawn["a"].chosen.tolist() != other["a"].chosen.tolist()
    gone = torch.zeros(60, dtype=torch.bool)
    gone[10:] = True
    few = choose(stats, HyperHypoRule(percent=50, units="random"), without={"a": gone})
    assert sorted(few["a"].chosen.tolist()) == list(range(10))
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    select_units(stats, HyperHypoRule(percent=0, units="random"), generator)
    assert torch.equal(generator.get_state(), state)


# --- weights of chosen units ----------------------------------------------------------------------------------


class Residual(nn.Module):
    """A group that cannot be pruned beside one that can."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer, self.head = (
            nn.Linear(*shape) for shape in ((8, 6), (6, 10), (10, 6), (6, 2))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.stem(x))
        return self.head(torch.relu(h + self.outer(torch.relu(self.inner(h)))))


def test_units_that_are_not_private_are_skipped_when_pruning_and_adapted_nonetheless() -> None:
    model, x = Residual(), torch.randn(40, 8)
    units, probe = find_units(model, x), Probe([(x,)])
    watched = {group.name: group.private for group in units}
    assert watched.pop("inner") and watched and not any(watched.values())
    before, pruned = copy.deepcopy(model.state_dict()), {}
    rule, generator = HyperHypoRule("prune", percent=10), torch.Generator()
    report, selections = prune_units(model, units, probe, Masks(), pruned, rule, None, generator)
    number = sum(len(each.chosen) for name, each in selections.items() if name != "inner")
    assert report.counts["skipped"] == number > 0 and report.counts["pruned"] == len(selections["inner"].chosen) == 2
    assert set(pruned) == {"inner"}
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["outer.weight"]
    report, selections, entries = choose_entries(model, units, probe, HyperHypoRule(percent=10), generator)
    assert {name.split(".")[0] for name in entries} == {"stem", "inner", "outer"}
    for group in units:
        for write in group.writes:
            rows = write.rows[selections[group.name].chosen].tolist()
            assert set(rows) <= set(entries[f"{write.layer}.weight"].any(1).nonzero().flatten().tolist())
            assert set(rows) <= set(entries[f"{write.layer}.bias"].nonzero().flatten().tolist())


def test_both_ends_take_turns_where_there_is_room_for_some_only() -> None:
    model = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1))
    with torch.no_grad():  # unit u fires on u of 8 samples
        model[0].weight.fill_(1)
        model[0].bias.copy_(torch.arange(8) - 7.5)
    x = torch.arange(8.0).view(8, 1)
    for maximum, taken in ((0.13, [7]), (0.25, [0, 7]), (0.375, [0, 6, 7]), (1.0, [0, 1, 6, 7])):
        twin, pruned = copy.deepcopy(model), {}
        rule = HyperHypoRule("prune", percent=25, maximum_pruned=maximum)
        arguments = (find_units(twin, x), Probe([(x,)]), Masks(), pruned, rule, None, torch.Generator())
        report, _ = prune_units(twin, *arguments)
        assert report.units == {"0": taken}
        assert report.counts["spared"] == 4 - len(taken)
        assert (twin[2].weight[0] == 0).nonzero().flatten().tolist() == taken


# --- mistakes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "freeze"}, "unknown mode 'freeze'; there are: adapt, prune"),
        ({"saliency": "taylor"}, "unknown saliency 'taylor'; there are: frequency, mean_abs, std, entropy"),
        ({"select": "top"}, "unknown select 'top'; there are: percentile, bounds"),
        ({"units": "all"}, "unknown units 'all'; there are: both, hyper, hypo, random"),
        ({"percent": 51}, "percent must be a number in"),
        ({"percent": -1}, "percent must be a number in"),
        ({"percent": math.nan}, "percent must be a number in"),
        ({"select": "bounds", "low": 0.9, "high": 0.1}, "bounds must satisfy 0 <= low < high <= 1"),
        ({"select": "bounds", "low": -0.1}, "low must be a number of at least 0"),
        ({"select": "bounds", "high": 1.1}, "bounds must satisfy"),
        ({"select": "bounds", "saliency": "mean_abs"}, "needs both low and high"),
        ({"select": "bounds", "saliency": "std", "low": 1}, 'saliency="std" needs both low and high'),
        ({"self_label": "some"}, "self_label must be False, True or"),
        ({"self_label": 1.0}, "self_label must be False, True or"),
        ({"self_label": True, "mode": "prune"}, "no units learn alone in mode"),
        ({"confident_share": 0}, "confident_share must"),
        ({"confident_share": 1.1}, "confident_share must"),
        ({"select": "bounds", "saliency": "mean_abs", "low": 2, "high": 2}, "bounds must satisfy 0 <= low < high,"),
        ({"low": 0.1}, 'select="bounds" only'),
        ({"adapt_share": 1.5}, "adapt_share must be a number in"),
        ({"maximum_pruned": -0.5}, "maximum_pruned must lie in"),
        ({"probe_samples": 0}, "probe_samples must be"),
    ],
)
def test_bad_arguments_are_named_in_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        HyperHypoPlugin(**arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_weight_without_rows_of_its_own_is_refused() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2))
    units = UnitGroups([UnitGroup("0", size=6, activation="relu", at="1", consumers=[("2", 1)])])
    chosen = choose({"0": statistics([1, 2, 3, 4, 5, 6], 8)}, HyperHypoRule())
    with pytest.raises(UserError, match="layer '0' computes its weight from other parameters"):
        incoming_entries(model, units, chosen)


def test_rows_of_two_writers_and_of_a_layer_that_writes_some_units_only() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(3, 2, bias=False)})
    rows = [torch.tensor([3, 2, 1, 0]), torch.tensor([-1, -1, 0, 1])]
    writes = tuple(Write(layer, row, None, None) for layer, row in zip("ab", rows, strict=True))
    units = UnitGroups([UnitGroup("a", size=4, activation="relu", at="a", producers=("a", "b"), writes=writes)])
    picked = {"a": Selection(*[torch.tensor([0, 2])] * 3)}
    entries = incoming_entries(model, units, picked)
    assert set(entries) == {"a.weight", "a.bias", "b.weight"}
    assert entries["a.weight"].any(1).tolist() == entries["a.bias"].tolist() == [False, True, False, True]
    assert entries["b.weight"].tolist() == [[True] * 3, [False] * 3]


def test_a_group_that_shrinks_after_pruning_is_an_error_and_one_that_is_gone_is_forgotten() -> None:
    model, x = mlp(), torch.randn(4, 8)
    units = find_units(model, x)
    pruned = {"0": torch.ones(30, dtype=torch.bool)}
    with pytest.raises(UserError, match="group '0' had 30 units when some were pruned, and has 20 now"):
        keep_pruned(model, units, Masks(), pruned)
    pruned, masks = {"elsewhere": torch.ones(3, dtype=torch.bool), "0": torch.ones(2, dtype=torch.bool)}, Masks()
    keep_pruned(model, units, masks, pruned)
    assert set(pruned) == {"0"} and pruned["0"].tolist() == [True] * 2 + [False] * 18
    assert bool((model[3].weight[:, :2] == 0).all()) and masks.removed() == 24


def test_data_without_a_length_is_an_error_that_says_so() -> None:
    plugin = HyperHypoPlugin()
    plugin._entries, plugin._iterations_left = {"0.weight": torch.ones(1, dtype=torch.bool)}, None
    with pytest.raises(UserError, match="the data has no length"):
        plugin.before_training_epoch(SimpleNamespace(dataloader=iter([]), train_epochs=1, experience=None))
