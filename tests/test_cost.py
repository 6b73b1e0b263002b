"""Costs: the arithmetic of interleaved ratios by hand, and every section once, on something small."""

import json
import statistics
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from benchmarks import models
from benchmarks.cli import main
from benchmarks.cli.measuring import CLEAR
from benchmarks.cost import CostSettings, cases, measure, peers, treating, watching
from benchmarks.cost.table import content, rows
from benchmarks.cost.timing import clock, interleave, interleave_builds, ratio, telling
from plasticity import UserError
from strategies import STRATEGIES

CPU = torch.device("cpu")
WATCHING = [watching.EXACT, watching.EVERY, watching.GRADIENTS, watching.HOOKS]
SMALL = cases.Case("small", "mlp-2x16", (8,), 8, torch.optim.SGD, 6)


def test_blocks_take_turns_and_every_second_round_is_reversed():
    order = []

    def block(name):
        return lambda: order.append(name) or float(len(order))

    times = interleave({"a": block("a"), "b": block("b"), "c": block("c")}, 3, warm_up=1)
    assert "".join(order) == "abc" + "cba" + "abc" + "cba"
    assert times == {"a": [6, 7, 12], "b": [5, 8, 11], "c": [4, 9, 10]}


@pytest.mark.parametrize("rounds, expected", [(1, [1]), (4, [1] * 4), (15, [3, 3, 3, 2, 2, 2])])
def test_networks_are_built_anew_on_the_way(rounds, expected):
    """Each build has a round to warm up, which does not count, and its share of the others."""
    built = []

    def build():
        count = len(built)
        built.append(0)

        def block():
            built[count] += 1
            return float(10 * count + built[count])

        return {"a": block}

    times = interleave_builds(build, rounds)
    assert built == [share + 1 for share in expected]
    assert times["a"] == [10 * number + turn for number, share in enumerate(expected) for turn in range(2, share + 2)]


def test_a_ratio_is_the_median_of_the_ratios_within_rounds():
    times = {"method": [2.0, 30.0, 3.3, 4.4, 5.0], "naive": [1.0, 10.0, 3.0, 4.0, 5.0]}
    found = ratio(times, "method", "naive")
    ratios = [2.0, 3.0, 1.1, 1.1, 1.0]
    assert found.median == pytest.approx(statistics.median(ratios)) and found.rounds == 5
    assert min(ratios) <= found.low <= found.median <= found.high <= max(ratios)
    same = ratio({"x": [3.0] * 4, "y": [2.0] * 4}, "x", "y")
    assert (same.low, same.median, same.high) == (1.5, 1.5, 1.5)


def test_watching_is_measured_beside_the_same_strategy_without(capsys):
    lines = list(watching.measure(CPU, 2, [SMALL]))
    assert [line.what for line in lines] == WATCHING
    assert all(line.ratio.rounds == 2 and line.ratio.median > 0 for line in lines)


def test_the_sampled_line_times_as_many_looks_as_it_says(monkeypatch):
    looks, steps = [], []

    class Spied(cases.Trainer):
        def __init__(self, case, device, plugins=None, metrics=None):
            super().__init__(case, device, plugins, metrics)
            (metric,) = metrics[0] if metrics else [None]
            steps.append(case.steps)
            if metric is not None and metric.settings.every > 1:
                self.strategy.model.register_forward_hook(lambda *args: looks.append(self._looks(metric)))

        def _looks(self, metric):
            timed = self.timer._count > self.timer.SKIPPED
            return timed and (activity := metric._training.observer.activity) is not None and activity.attached

    monkeypatch.setattr(watching, "Trainer", Spied)
    list(watching.measure(CPU, 1, [SMALL]))
    assert set(steps) == {10} and sum(looks) == 2  # one in the round to warm up, and one in the round that counts


def test_treating_is_measured_by_step_and_by_treatment():
    """Of each method a step, and a treatment where it has one, even if that comes after a thousand steps."""
    names = [
        "synaptic-stripping",
        "l2-init",
        "upgd",
        "layer-norm",
        "continual-backprop",
        "redo",
        "plasticity-injection",
    ]
    lines = [(line.what, line.unit) for line in treating.measure(CPU, 2, [SMALL], names)]
    assert lines[: len(names)] == [(name, "step / naive step") for name in names]
    treated = ["synaptic-stripping", "redo"]
    assert lines[len(names) :] == [(name, "treatment / naive step") for name in treated]


def test_a_treatment_is_no_part_of_the_steps(monkeypatch):
    """By a clock that a treatment moves by 1,000 seconds, and a step by one."""
    now = [0.0]

    def trained(strategy, *args, **kwargs):
        now[0] += 1

    for place in "benchmarks.cost.cases.clock", "benchmarks.cost.treating.clock":
        monkeypatch.setattr(place, lambda device: now[0])
    monkeypatch.setattr(cases.StepTimer, "after_training_iteration", trained)
    for name in "redo", "synaptic-stripping", "synaptic-stripping-whitaker2023":
        method = treating.Method(name, SMALL, CPU)
        plugin = method._treating[0]
        treat = plugin.treat
        monkeypatch.setattr(plugin, "treat", lambda *args, t=treat: now.__setitem__(0, now[0] + 1000) or t(*args))
        assert [method() for _ in range(3)] == [1.0] * 3, name
        assert method.treatments[1:] == [1000.0] * 2 and len(plugin.history) >= 2, name


def test_every_method_can_be_measured_on_every_network():
    """A method that a network does not admit is passed over, and nothing else is."""
    tiny = [cases.Case(case.name, case.model, case.shape, 4, torch.optim.SGD, 1) for case in treating.CASES[1:2]]
    for case in tiny:
        found = {line.what for line in treating.measure(CPU, 1, [case])}
        assert found == (set(treating.STRATEGIES) - treating.LEFT_OUT) | set(peers.installed())


def test_another_package_is_measured_where_it_is_installed(monkeypatch):
    """Its optimizer wraps the case's, knows the network and takes every step."""
    made = []

    class Wrapper(torch.optim.SGD):
        def __init__(self, optimizer, model, **settings):
            super().__init__(model.parameters(), lr=0.1)
            self.inner, self.settings, self.steps = optimizer, settings, 0
            made.append(self)

        def step(self, closure=None):
            self.steps += 1
            return self.inner.step(closure)

    monkeypatch.setattr(peers, "MODULE", "no_such_package")
    assert peers.installed() == {}
    module = ModuleType("no_such_package")
    module.__spec__, module.CCBP = ModuleSpec("no_such_package", None), Wrapper
    monkeypatch.setitem(sys.modules, "no_such_package", module)
    for make in peers.installed().values():
        trainer = make(SMALL, CPU)
        before = [parameter.detach().clone() for parameter in trainer.strategy.model.parameters()]
        assert trainer() > 0
        after = trainer.strategy.model.parameters()
        assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert [optimizer.steps for optimizer in made] == [SMALL.steps + cases.StepTimer.SKIPPED] * 2
    rate = treating.build_plugins("continual-backprop", treating.Context(None, 0, 1, 8, 1))[0].rule.replacement_rate
    assert [optimizer.settings.get("replacement_rate") for optimizer in made] == [None, rate]


def test_one_thread_is_timed_by_its_own_work(monkeypatch):
    monkeypatch.setattr("time.process_time", lambda: 1.0)
    monkeypatch.setattr("time.perf_counter", lambda: 2.0)
    for threads, expected in ((1, 1.0), (2, 2.0)):
        torch.set_num_threads(threads)
        assert clock(CPU) == expected


def test_the_step_timer_counts_the_steps_after_the_first_few(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr("benchmarks.cost.cases.clock", lambda device: float(next(ticks)) * 12)
    assert cases.Trainer(SMALL, CPU)() == pytest.approx(12 / SMALL.steps)


def test_a_strategy_asked_for_by_its_name_is_measured_or_refused(monkeypatch):
    """Also several together, beside the other package if ours is among them, all in the same rounds."""
    asked = ["redo:tau=0.1+l2", "layer-norm+upgd", "continual-backprop"]
    rounds = []
    monkeypatch.setattr(
        treating, "interleave", lambda blocks, count: rounds.append(list(blocks)) or interleave(blocks, 1)
    )
    monkeypatch.setattr(treating, "installed", lambda: {"peer": lambda case, device: cases.Trainer(case, device)})
    found = {line.what for line in treating.measure(CPU, 1, [SMALL], asked)}
    assert found == {*asked, "peer"} and rounds == [["naive", *asked, "peer"]]
    layers = treating.Method("layer-norm+upgd", SMALL, CPU).trainer.strategy
    assert type(layers.optimizer).__name__ == "UPGD"
    assert any(isinstance(module, torch.nn.LayerNorm) for module in layers.model.modules())
    nothing_to_treat = cases.Case("none", "linear", (8,), 8, torch.optim.SGD, 2)
    with monkeypatch.context() as patch:
        patch.setitem(models.MODELS, "linear", lambda classes, shape, labels: torch.nn.Linear(shape[0], classes))
        assert list(treating.measure(CPU, 1, [nothing_to_treat], ["l2"]))
        with pytest.raises(UserError, match="^redo on linear: "):
            next(treating.measure(CPU, 1, [nothing_to_treat], ["redo"]))


def test_all_strategies_are_those_that_treat(monkeypatch):
    """What is left out of them, as a second name or a line to compare with, is measured if it is named."""
    left_out = sorted(treating.LEFT_OUT)
    named = [line.what for line in treating.measure(CPU, 1, [SMALL], left_out)]
    assert [*dict.fromkeys(named)] == left_out
    seen = []
    monkeypatch.setattr(treating, "measure", lambda *args, **kwargs: seen.append(args[3]) or iter(()))
    for names in (), ("all",), ("l2",):
        list(measure(CostSettings(("treating",), strategies=names)))
    assert seen == [None, None, ("l2",)]


def test_every_block_is_told_before_it_begins():
    told = []
    with telling(lambda *what: told.append(what)):
        interleave({"a": lambda: told.append("a") or 1.0, "b": lambda: 1.0}, 1, warm_up=1)
    interleave({"c": lambda: 1.0}, 1)
    assert told == [("a", 1, 2), "a", ("b", 1, 2), ("b", 2, 2), ("a", 2, 2), "a"]


@pytest.fixture
def small(monkeypatch):
    for section in watching, treating, cases:
        monkeypatch.setattr(section, "CASES", (SMALL, replace(SMALL, name="other", model="mlp-2x8")))


def test_the_command_prints_figures_as_they_come_and_writes_them(tmp_path, capsys, small):
    output = tmp_path / "cost.json"
    assert main(["cost", "--sections", "watching", "--rounds", "2", "--output", str(output)]) == 0
    shown = capsys.readouterr()
    assert "watching: small (step / naive step)" in shown.out and shown.err == ""
    found = json.loads(output.read_text())
    assert found["command"].endswith("cost --sections watching --rounds 2 --device cpu --threads 1")
    assert {"torch", "cpu"} <= set(found["environment"])
    assert [line["what"] for line in found["lines"]] == WATCHING * 2


def test_what_was_measured_before_an_interruption_is_kept(tmp_path, capsys, small, monkeypatch):
    output = tmp_path / "cost.json"
    output.write_text("of before")
    asked = ["cost", "--sections", "treating", "--rounds", "3", "--output", str(output), "--strategies", "redo"]
    before = []

    def interrupted(blocks, rounds):
        if before:
            raise KeyboardInterrupt
        before.append(output.read_text())
        return interleave(blocks, rounds)

    monkeypatch.setattr(treating, "interleave", interrupted)
    assert main(asked) == 130 and before == ["of before"]
    shown, found = capsys.readouterr(), json.loads(output.read_text())
    assert [(line["case"], line["what"]) for line in found["lines"]] == [("small", "redo")] * 2
    assert shown.out.count("  redo ") == 2 and "interrupted" in shown.err
    assert found["command"].endswith("--threads 1 --strategies redo")
    assert [path.name for path in tmp_path.iterdir()] == ["cost.json"]


def test_a_terminal_shows_what_is_going_on(capsys, small, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert (
        main(["cost", "--sections", "treating", "--rounds", "3", "--strategies", "l2", "--networks", "mlp-2x16"]) == 0
    )
    shown = capsys.readouterr().err
    assert "round 2 of 2: l2" in shown and shown.endswith(CLEAR)


def test_networks_and_strategies_are_those_asked_for(tmp_path, capsys, small, monkeypatch):
    (tmp_path / "my_methods.py").write_text(
        "from plasticity.plugins import L2Plugin\n"
        "from strategies import register\n"
        "register('my-method', lambda context: [L2Plugin()])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(STRATEGIES, "my-method", None)
    del STRATEGIES["my-method"]  # so that it is gone after the test, too
    words = ["--networks", "mlp-2x8", "--strategies", "my-method,l2+redo", "--import", "my_methods"]
    asked = ["cost", "--sections", "treating", "--rounds", "1", *words, "--output", str(tmp_path / "cost.json")]
    assert main(asked) == 0
    found = json.loads((tmp_path / "cost.json").read_text())
    cost = [(line["case"], line["what"], line["unit"][:4]) for line in found["lines"]]
    assert cost == [("other", "my-method", "step"), ("other", "l2+redo", "step"), ("other", "l2+redo", "trea")]
    expected = (
        "--sections treating --rounds 1 --device cpu --threads 1 --strategies my-method,l2+redo --networks mlp-2x8"
    )
    assert found["command"] == f"python -m benchmarks cost {expected} --import my_methods"


@pytest.mark.parametrize(
    "words, said",
    [
        (["--sections", ","], "--sections names none"),
        (["--sections", "sleeping"], "unknown section 'sleeping': there are watching"),
        (["--strategies", "redo:tua=1"], "error: 'redo:tua=1': ReDoPlugin has no argument 'tua'"),
        (["--strategies", "upgd:x=1"], "error: 'upgd:x=1'"),
        (["--strategies", "redoo"], "unknown strategy 'redoo'"),
        (
            ["--networks", "resnet"],
            "unknown network 'resnet': costs are measured on slim-resnet18, pairs-conv, mlp-3x1000",
        ),
        (["--sections", "loading", "--networks", "pairs-conv"], "--networks is for watching and treating, which"),
        (["--sections", "watching", "--strategies", "redo"], "--strategies is for treating and long-runs, which"),
        (["--experiences", "5"], "--experiences is for long-runs, which --sections does not name"),
        (["--output", "absent/cost.json"], "cannot write absent/cost.json: No such file or directory"),
        (["--output", "."], "cannot write .: it is a folder"),
        (["--import", "no_such_module"], "no_such_module"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(words, said, capsys, monkeypatch):
    monkeypatch.setattr(watching, "measure", lambda *args, **kwargs: pytest.fail("it began"))
    assert main(["cost", *words]) == 2
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.count("\n") == 1 and not shown.out


def test_the_text_has_every_figure():
    lines = list(watching.measure(CPU, 1, [SMALL]))
    shown = "\n".join(rows(lines))
    for line in lines:
        assert f"{line.ratio.median:.3f}" in shown and line.what in shown
    assert content(lines, {}, "x")["lines"][0]["ratio"]["median"] == lines[0].ratio.median
