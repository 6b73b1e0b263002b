"""What each study makes of finished runs: against figures worked out by hand."""

import numpy as np
import pytest
import torch
from study_cases import ASKED, finished, result

from benchmarks.runner import import_modules
from benchmarks.studies import Asked, demon_pruning, dying_units, get_study, hyper_hypo, width_depth

SPREAD = (-0.01, 0.0, 0.01)  # over seeds: half a 95% interval is then 4.303 · 0.01 / √3
HALF = 4.302653 * 0.01 / np.sqrt(3)


@pytest.fixture(autouse=True, scope="module")
def _registered():
    for name in ("dying-units", "hyper-hypo", "demon-pruning"):
        import_modules(list(get_study(name).modules))


# --- dying units -----------------------------------------------------------------------------------------------


def dead_by_settings(run):
    """More dead units with the learning rate and with noise on live weights, fewer with larger batches."""
    dead = {"adam": 0.1, "adamw": 0.2, "sgd": 0.3}[run.optimizer] + 3 * min(run.learning_rate, 0.05)
    dead -= 0.001 * run.batch_size
    if "live_only" in run.strategy:
        dead += 0.2 * float("std=0.1" in run.strategy)
    accuracy = 0.1 if run.learning_rate >= 1 else 0.9 + 0.01 * (run.learning_rate == 0.01)
    return result(dead=dead + SPREAD[run.seed], accuracy=accuracy)


def rows_of(report, **wanted):
    return [row for row in report.rows if all(row[key] == value for key, value in wanted.items())]


def test_dying_units_compares_settings_at_which_networks_learn():
    runs = dying_units.runs(ASKED)
    report = dying_units.report(ASKED, finished(runs, dead_by_settings))
    keys = {"stream": "new tasks", "optimizer": "Adam"}
    (row,) = rows_of(report, **keys, factor="learning rate", level=3e-4)
    assert row["dead"]["mean"] == pytest.approx(0.1 + 3 * 3e-4 - 0.032)
    assert row["dead"]["high"] - row["dead"]["mean"] == pytest.approx(HALF, rel=1e-4)
    assert row["rank"]["mean"] is None
    (series,) = [r for r in report.summary if r["factor"] == "learning rate" and keys.items() <= r.items()]
    assert series["range"] == "0.0003 to 0.03" and series["most"] == 0.03
    assert series["change"]["mean"] == pytest.approx(3 * (0.03 - 3e-4))
    assert series["change"]["low"] == pytest.approx(series["change"]["mean"])  # the same seeds: no spread is left
    (series,) = [r for r in report.summary if r["factor"] == "learning rate" and r["optimizer"] == "SGD"][:1]
    assert series["range"] == "0.01 to 0.3"  # at 1 the network does not learn
    assert "A higher learning rate kills more units in 8 of 8 series, fewer in 0 (" in report.finding
    assert "A larger batch, over as many epochs, kills more units in 0 of 4 series, fewer in 4" in report.finding
    assert "Gradient noise on live weights alone kills more units in 4 of 4 series" in report.finding
    assert "Gradient noise on all weights kills more units in 0 of 4 series, fewer in 0, and in 4" in report.finding


def test_dying_units_compares_optimizers_at_their_best_rates():
    report = dying_units.report(ASKED, finished(dying_units.runs(ASKED), dead_by_settings))
    best = rows_of(report, factor="optimizer, at its best learning rate", stream="one data set")
    assert {row["optimizer"]: row["level"] for row in best} == dict.fromkeys(dying_units.OPTIMIZERS, 0.01)
    assert best[1]["dead"]["mean"] == pytest.approx(0.2 + 0.03 - 0.032)


def test_dying_units_gives_every_batch_size_as_many_updates():
    for point in dying_units.points(ASKED):
        for run in point.runs:
            if point.factor == "batch size, equal updates":
                batches = -(-1437 // run.batch_size) * run.epochs * run.experiences
                assert 0.95 < batches / 1800 < 1.15, run
            elif point.factor == "batch size, equal epochs":
                assert run.epochs * run.experiences == 40


def test_one_setting_that_learns_leaves_nothing_to_compare():
    made = finished(dying_units.runs(ASKED), lambda run: result(accuracy=0.9 if run.learning_rate == 0.01 else 0.1))
    report = dying_units.report(ASKED, made)
    assert "A higher learning rate leaves nothing to compare" in report.finding


# --- width and depth -------------------------------------------------------------------------------------------


def by_size(run):
    width, depth = (int(run.model.split("-")[1].split("x")[index]) for index in (1, 0))
    naive = run.strategy == "naive"
    dead = (0.4 if depth == 8 else 0.01) * (1.0 if naive else 0.25)
    treatments = [] if naive else [{"removed_fraction": 0.1}, {"removed_fraction": 0.2}]
    gain = 0.0 if naive or depth < 8 else 0.05
    return result(dead=dead, accuracy=0.8 + gain + SPREAD[run.seed], treatments=treatments, sizes={"a": width})


def test_width_depth_counts_live_units_and_what_stripping_gains():
    runs = width_depth.runs(ASKED)
    report = width_depth.report(ASKED, finished(runs, by_size))
    assert len(report.rows) == 27
    (row,) = rows_of(report, depth=8, width=512, strategy="stripping, authors’ rule")
    assert row["live"]["mean"] == pytest.approx(0.9 * 8 * 512) and row["removed"]["mean"] == pytest.approx(0.2)
    assert row["gain"]["mean"] == pytest.approx(0.05)
    (row,) = rows_of(report, depth=8, width=512, strategy="naive")
    assert row["gain"] is None and row["removed"]["mean"] == 0 and row["dead"]["mean"] == pytest.approx(0.4)
    assert "Of 9 sizes, 3 lose at least 5% of their units" in report.finding
    assert "leaves a share of 0.10 [0.10, 0.10] dead, where naive has 0.40 [0.40, 0.40]" in report.finding
    assert "better in 3 of 3 sizes, worse in 0" in report.finding
    assert "In the other sizes accuracy changes with stripping, guarded rule by 0.000" in report.finding


# --- hyper and hypo units --------------------------------------------------------------------------------------


def by_choice(run):
    """Hypo units by entropy help by 0.1 on turned digits when labels are used; a random choice always costs 0.02."""
    target = 0.6 if "hold" in run.strategy else 0.8
    if "random" in run.strategy:
        target -= 0.02
    helps = "units=hypo:saliency=entropy" in run.strategy and run.benchmark == "digits-turned"
    if helps and "self_label" not in run.strategy and "hold" not in run.strategy:
        target += 0.1
    return result(learned=[0.95, target + SPREAD[run.seed]])


def test_hyper_hypo_finds_where_a_choice_of_units_helps():
    runs = hyper_hypo.runs(ASKED)
    report = hyper_hypo.report(ASKED, finished(runs, by_choice))
    chosen = {"situation": "adapt, with labels", "units": "hypo", "saliency": "entropy"}
    (row,) = rows_of(report, benchmark="digits-turned", **chosen)
    assert row["accuracy"]["mean"] == pytest.approx(0.9)
    assert row["over_whole"]["mean"] == pytest.approx(0.1) and row["over_random"]["mean"] == pytest.approx(0.12)
    (row,) = rows_of(report, benchmark="digits-faint", **chosen)
    assert row["over_whole"]["mean"] == pytest.approx(0, abs=1e-9)
    (row,) = [r for r in report.summary if chosen.items() <= r.items()]
    assert row["over_whole"]["mean"] == pytest.approx(0.1 / 4)
    (row,) = rows_of(report, benchmark="digits-faint", situation="adapt, no labels", units="whole")
    assert row["over_whole"] is None and row["over_random"] is None
    (row,) = rows_of(report, benchmark="digits-faint", situation="prune, no training", units="random")
    assert row["over_whole"]["mean"] == pytest.approx(-0.02) and row["over_random"] is None
    assert "0.600 [0.575, 0.625] as it is" in report.finding
    assert (
        "Adapt, with labels: of 12 choices 1 are better and 0 worse than the whole network (best +0.025"
        in report.finding
    )
    assert "12 are better and 0 worse than a random choice" in report.finding
    assert "most clearly adapt, with labels with hypo units by entropy on digits-turned: +0.100" in report.finding


def test_hyper_hypo_says_so_where_nothing_helps():
    made = finished(hyper_hypo.runs(ASKED), lambda run: result(learned=[0.9, 0.7 + SPREAD[run.seed]]))
    finding = hyper_hypo.report(ASKED, made).finding
    assert "none of 192 choices is better than both the whole network and the random one" in finding


def test_new_domains_are_all_but_the_first():
    assert hyper_hypo.new_domain_accuracy(result(learned=[1.0, 0.5, 0.7])) == pytest.approx(0.6)


# --- Demon pruning ---------------------------------------------------------------------------------------------


@pytest.fixture
def decades(monkeypatch):
    monkeypatch.setattr(demon_pruning, "STRENGTHS", (1e-5, 1e-4, 1e-3, 1e-2, 1e-1))


def by_strength(run):
    """The stronger the penalty, the fewer units; accuracy falls at 1e-2 and beyond. Other units die at 1e-1."""
    if run.strategy == "naive":
        return result(accuracy=0.7 + SPREAD[run.seed], parameters=1000, seconds=10, dead=0.05)
    power = next(i for i, s in enumerate(demon_pruning.STRENGTHS) if run.strategy.endswith(f"={s:g}"))
    loss = (0.0, 0.0, 0.005, 0.05, 0.4)[power]
    left = 1000 - 200 * power
    treatments = [{"parameters": 1000, "pruned_fraction": 0.0}, {"parameters": left, "pruned_fraction": 0.2 * power}]
    shrunk = "shrink" in run.strategy
    return result(
        accuracy=0.7 - loss + SPREAD[run.seed],
        treatments=treatments,
        parameters=left if shrunk else 1000,
        sizes={"trunk.conv1": 10 - 2 * power if shrunk else 10},
        seconds=15,
    )


def test_demon_pruning_reports_the_front_and_the_time_of_a_step(decades):
    asked, timed = Asked(3), []

    def ratio(build, sizes, shape, classes, batch_size):
        timed.append((sizes, shape, classes, batch_size))
        return [each["trunk.conv1"] / 10 for each in sizes]

    report = demon_pruning.report(asked, finished(demon_pruning.runs(asked), by_strength), ratio)
    assert len(report.rows) == 11
    assert timed[0][1:] == ((3, 32, 32), 10, 64)
    assert [each["trunk.conv1"] for each in timed[0][0]] == [10] * 3 + [8] * 3 + [6] * 3 + [4] * 3 + [2] * 3
    (row,) = rows_of(report, strength=1e-3, mode="shrink")
    assert row["units"]["mean"] == pytest.approx(0.4) and row["weights"]["mean"] == pytest.approx(0.4)
    assert row["parameters"]["mean"] == 600 and row["step"]["mean"] == pytest.approx(0.6)
    assert row["loss"]["mean"] == pytest.approx(0.005) and row["time"]["mean"] == pytest.approx(1.5)
    (row,) = rows_of(report, strength=1e-3, mode="mask")
    assert row["parameters"]["mean"] == 600 and row["step"] is None
    (naive,) = rows_of(report, mode="naive")
    assert naive["accuracy"]["mean"] == pytest.approx(0.7) and naive["loss"] is None
    assert "goes from 0.000 [0.000, 0.000] to 0.800 [0.800, 0.800]" in report.finding
    assert "is at λ = 0.001: 0.400 [0.400, 0.400] of the units" in report.finding
    assert "then takes 0.60 [0.60, 0.60] times as long" in report.finding
    assert "Of 1000 parameters removal leaves 600, and masks 600." in report.finding


def test_demon_pruning_says_so_where_every_strength_costs_accuracy(decades):
    def worse(run):
        made = by_strength(run)
        made["measures"]["average_accuracy"] -= 0.2 * (run.strategy != "naive")
        return made

    asked = Asked(3)
    made = finished(demon_pruning.runs(asked), worse)
    finding = demon_pruning.report(asked, made, lambda build, sizes, *rest: [1.0] * len(sizes)).finding
    assert "Every λ that was tried costs more than 0.01 of accuracy." in finding


# --- steps -----------------------------------------------------------------------------------------------------


def test_a_network_shrunk_to_given_sizes_has_them_and_runs():
    from functools import partial

    from benchmarks.models import build_model
    from benchmarks.studies.step_time import shrunk
    from plasticity import find_units

    build, x = partial(build_model, "pairs-conv-bn", 10, (3, 32, 32)), torch.randn(4, 3, 32, 32)
    names = [group.name for group in find_units(build(), x)]
    sizes = dict(zip(names, (5, 7, 32, 1, 100), strict=True))
    model = shrunk(build, x, sizes)
    assert {group.name: group.size for group in find_units(model, x)} == sizes
    assert model(x).shape == (4, 10)


def test_a_step_of_a_much_smaller_network_takes_much_less_time():
    from functools import partial

    from benchmarks.models import build_model
    from benchmarks.studies.step_time import step_ratio

    build = partial(build_model, "mlp-2x1024", 10, (512,))
    small, same = step_ratio(build, [{"trunk.linear1": 8, "trunk.linear2": 8}, {}], (512,), 10, 64, blocks=3)
    assert small < 0.5 and 0.5 < same < 2
