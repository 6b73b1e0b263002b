"""Options of strategies, and tuning: the same number of tries for every method, on seeds of their own."""

import json

import pytest
import torch
from torch import nn

from benchmarks.cli import main
from benchmarks.tuning import configurations, read_tuned, tuned_name
from plasticity.errors import UserError
from strategies import STRATEGIES, Context, build_plugins, change_network, choose_optimizer, parse, register

CONTEXT = Context(nn.Identity, seed=3, epochs=1, batch_size=32, experiences=8)


@pytest.fixture
def mine(monkeypatch):
    """A strategy whose score depends on its option alone: it overwrites the head with what `scale` says."""
    monkeypatch.setattr("strategies.registry.STRATEGIES", dict(STRATEGIES))
    seen = []

    def plugins(context, *, scale=1, label="none"):
        seen.append((context.seed, scale, label))
        return []

    register("mine", plugins, configurations=("", "scale=2", "scale=3:label=long"))
    return seen


def test_options_reach_the_plugin():
    (plugin,) = build_plugins("redo:tau=.1:every=200", CONTEXT)
    assert (plugin.rule.tau, plugin.every) == (0.1, 200)
    (plugin,) = build_plugins("synaptic-stripping:every=epoch:guard=false", CONTEXT)
    assert (plugin.rule.guard, plugin.every) == (False, "epoch")
    first, second = build_plugins("replay:mem_size=7+l2:strength=1e-3", CONTEXT)
    assert first.storage_policy.max_size == 7 and second.strength == 1e-3
    (plugin,) = build_plugins("plasticity-injection:share=0.25", CONTEXT)
    assert plugin.experience == 2


def test_options_reach_the_network_and_the_optimizer():
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    changed = change_network("leaky-relu:slope=0.3", network, (torch.randn(2, 4),))
    assert changed[1].negative_slope == 0.3
    parameters = list(network.parameters())
    for name, kind, rate in (("upgd", "adam", 10), ("upgd", "sgd", 1), ("upgd:rate=3", "adam", 3)):
        group = choose_optimizer(name, parameters, kind, 0.01).param_groups[0]
        assert group["lr"] == pytest.approx(rate * 0.01)
    assert choose_optimizer("upgd:sigma=0.5", parameters, "sgd", 0.01).param_groups[0]["sigma"] == 0.5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "redo:tauu=1",
            "has no argument 'tauu'; there are: tau, maximum_share, moments, preset, every, probe_samples, seed",
        ),
        ("redo:tau", "written NAME=VALUE, not 'tau'"),
        ("redo:tau=high", "tau must lie in"),
        ("crelu:width=1", "crelu has no option 'width'; it has none"),
        ("leaky-relu:slop=1", "has no option 'slop'; there are: slope"),
        ("l2:strenght=1", "has no argument 'strenght'"),
        ("redo:tau=1+redo", "names 'redo' twice"),
    ],
)
def test_a_wrong_option_is_answered_in_words(name, message):
    with pytest.raises(UserError, match=message):
        build_plugins(name, CONTEXT)


def test_a_wrong_option_is_found_before_training(tmp_path, capsys):
    arguments = ["run", "split-digits", "--strategies", "naive,redo:tau=7", "--seeds", "1", "--out", str(tmp_path)]
    assert main(arguments) == 2
    assert "'redo:tau=7': tau must lie in" in capsys.readouterr().err
    assert not list(tmp_path.rglob("result.json"))


def test_every_configuration_of_every_strategy_can_be_made():
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    for name, tried in configurations(list(STRATEGIES)).items():
        assert len(tried) in (1, 4) and len(set(tried)) == len(tried) and tried[0] == name
        for configuration in tried:
            changed = change_network(configuration, network, (torch.randn(2, 4),))
            choose_optimizer(configuration, list(changed.parameters()), "adam", 1e-3)
            build_plugins(configuration, CONTEXT)


def test_combinations_are_tuned_as_one(mine):
    assert configurations(["mine+l2"])["mine+l2"][:5] == [
        "mine+l2",
        "mine+l2:strength=0.001",
        "mine+l2:strength=0.0001",
        "mine+l2:strength=0.00001",
        "mine:scale=2+l2",
    ]
    with pytest.raises(UserError, match="is one configuration"):
        configurations(["mine:scale=2"])


def test_tune_runs_every_configuration_on_its_own_seeds_and_keeps_the_best(tmp_path, capsys):
    short = ["--experiences", "2", "--epochs", "1", "--out", str(tmp_path)]
    assert main(["tune", "split-digits", "--strategies", "naive,l2", "--seeds", "2", *short]) == 0
    printed = capsys.readouterr().out
    found = {}
    for path in tmp_path.rglob("result.json"):
        result = json.loads(path.read_text())
        found.setdefault(result["strategy"], {})[result["seed"]] = result["measures"]["late_learning_accuracy"]
    assert {name: sorted(values) for name, values in found.items()} == dict.fromkeys(
        ["naive", *configurations(["l2"])["l2"]], [1000, 1001]
    )
    tuned = json.loads((tmp_path / "tuned.json").read_text())
    scores = {name: sum(values.values()) / 2 for name, values in found.items()}
    l2 = {name: score for name, score in scores.items() if name.startswith("l2")}
    assert tuned["strategies"]["l2"]["scores"] == pytest.approx(l2)
    assert l2[tuned["strategies"]["l2"]["best"]] == max(l2.values())
    assert tuned["seeds"] == [1000, 1001] and f"* {tuned['strategies']['l2']['best']}\n" in printed

    best = read_tuned(tmp_path / "tuned.json", "split-digits")
    arguments = ["--strategies", "l2,fresh", "--seeds", "1", "--tuned", str(tmp_path / "tuned.json")]
    out = tmp_path / "table"
    assert main(["run", "split-digits", *arguments, *short[:-1], str(out)]) == 0
    assert {path.parent.parent.name for path in out.rglob("result.json")} == {best["l2"], "fresh"}


def test_tuned_names_of_combinations_take_the_best_of_each_part():
    best = {"redo": "redo:tau=0.1", "l2": "l2", "l2+replay": "l2:strength=1+replay"}
    assert tuned_name("redo+naive", best) == "redo:tau=0.1+naive"
    assert tuned_name("l2+replay", best) == "l2:strength=1+replay"


def test_a_file_that_is_none_of_tunes_is_refused(tmp_path):
    path = tmp_path / "tuned.json"
    with pytest.raises(UserError, match="cannot read"):
        read_tuned(path, "split-digits")
    for text in ("{", "[]", '{"strategies": {"l2": 1}, "benchmark": "split-digits"}'):
        path.write_text(text)
        with pytest.raises(UserError, match="was not written by"):
            read_tuned(path, "split-digits")
    path.write_text('{"strategies": {}, "benchmark": "split-cifar10"}')
    with pytest.raises(UserError, match="was tuned on split-cifar10"):
        read_tuned(path, "split-digits")


def test_options_belong_to_the_name(mine):
    (strategy,) = parse("mine:scale=2:label=a")
    strategy.plugins(CONTEXT)
    parse("mine")[0].plugins(CONTEXT)
    assert mine == [(3, 2, "a"), (3, 1, "none")]
