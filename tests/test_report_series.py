"""What the plots are given: each number against a loop that computes it anew."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from test_comparison_results import edit, write_run

from benchmarks.comparison.page import series
from benchmarks.comparison.page.activity import SHOWN, activity
from benchmarks.comparison.page.points import scatter
from benchmarks.comparison.results import read_runs
from benchmarks.comparison.rows import comparison_rows
from benchmarks.comparison.statistics import student_interval
from plasticity.errors import UserError


def change(folder, function):
    path = folder / "result.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    function(result)
    edit(path, **result)


@pytest.fixture(scope="module")
def strategies(tmp_path_factory):
    directory = tmp_path_factory.mktemp("results")
    for seed in range(3):
        for strategy in ("naive", "fresh", "redo"):
            folder = write_run(directory, strategy, seed, experiences=6, dead=0.3 + 0.1 * seed)

            def with_norms(result, seed=seed):
                for index, entry in enumerate(result["units"]):
                    entry["weight_norm"] = 3.0 + index + seed
                result["units"][2]["effective_rank"] = None

            change(folder, with_norms)
    return read_runs(directory)["permuted-digits"]


def stored(strategies, name, value):
    return np.array([[value(run, index) for index in range(6)] for run in strategies[name]])


SLOW = {
    "learning_accuracy": lambda run, i: run.accuracy_matrix[i, i],
    "online_accuracy": lambda run, i: run.online_accuracy[i],
    "accuracy_so_far": lambda run, i: sum(run.accuracy_matrix[i, j] for j in range(i + 1)) / (i + 1),
    "dead_fraction": lambda run, i: run.units[i]["dead_fraction"],
    "effective_rank": lambda run, i: math.nan if i == 2 else run.units[i]["effective_rank"],
    "weight_norm": lambda run, i: run.units[i]["weight_norm"],
    "output_shift": lambda run, i: next((t["output_shift"] for t in run.treatments if t["experience"] == i), math.nan),
}


@pytest.mark.parametrize("key", SLOW)
def test_curves_are_means_with_intervals(strategies, key):
    found = series.curves(strategies)[key]
    for name in found:
        values = stored(strategies, name, SLOW[key])
        for index in range(6):
            interval = student_interval(values[:, index])
            mean = found[name]["mean"][index]
            if np.isnan(values[:, index]).any():
                assert mean is None and found[name]["half"][index] is None
            else:
                half = (interval["high"] - interval["low"]) / 2
                assert mean == pytest.approx(interval["mean"], rel=1e-3)
                assert found[name]["half"][index] == pytest.approx(half, rel=1e-3, abs=1e-12)


def test_curves_come_in_a_sensible_order_and_where_they_are_known(strategies):
    found = series.curves(strategies)
    assert list(found) == [
        "learning_accuracy", "online_accuracy", "accuracy_so_far", "dead_fraction", "dormant_fraction",
        "over_active_fraction", "output_shift", "effective_rank", "weight_norm",
    ]  # fmt: skip
    assert list(found["output_shift"]) == ["redo"]
    assert found["accuracy_so_far"]["fresh"]["mean"][1:5] == [None] * 4  # its networks are asked about one experience
    assert series.label("weight_norm") == "weight norm" and series.label("dead_fraction") == "dead units"


def test_one_seed_has_no_interval(strategies):
    assert series.curves({"naive": strategies["naive"][:1]})["dead_fraction"]["naive"]["half"] is None


def test_long_streams_have_running_means_too(tmp_path):
    write_run(tmp_path, "naive", experiences=90)
    strategies = read_runs(tmp_path)["permuted-digits"]
    found = series.curves(strategies)
    assert series.smoothing(90) == 5 and series.smoothing(39) == 1
    learned = strategies["naive"][0].learning_accuracy
    slow = [np.mean(learned[max(0, i - 2) : i + 3]) for i in range(90)]
    assert found["~learning_accuracy"]["naive"]["mean"] == pytest.approx(slow, rel=1e-3)
    assert "~dead_fraction" not in found


def test_running_mean_equals_a_loop():
    values = np.random.default_rng(0).random(12)
    for window in (1, 3, 5):
        half = window // 2
        slow = [np.mean(values[max(0, i - half) : i + half + 1]) for i in range(12)]
        assert series.running_mean(values, window) == pytest.approx(slow)


@pytest.mark.parametrize(("size", "limit"), [(1, 3), (3, 3), (4, 3), (10, 4), (800, 240)])
def test_block_means_equal_a_loop(size, limit):
    values = np.random.default_rng(size).random((2, size))
    values[0, ::3] = math.nan
    width = math.ceil(size / limit)
    blocks = [values[:, start : start + width] for start in range(0, size, width)]
    slow = [[np.mean(row[~np.isnan(row)]) if (~np.isnan(row)).any() else math.nan for row in block] for block in blocks]
    found = series.block_means(values, limit)
    assert found.shape[1] <= limit
    assert found == pytest.approx(np.array(slow).T, nan_ok=True)
    grid = series.grid(range(size), size, limit)
    assert [last - first + 1 for first, last in zip(grid["first"], grid["last"], strict=True)] == [
        block.shape[1] for block in blocks
    ]


def test_a_grid_names_the_experiences_that_are_scored():
    assert series.grid([0, 2, 4], 6, 10) == {"first": [1, 3, 5], "last": [1, 3, 5], "total": 6}
    assert series.grid([0, 2, 4], 6, 2) == {"first": [1, 5], "last": [3, 5], "total": 6}


def test_experiences_that_are_not_scored_have_no_accuracy(tmp_path):
    from benchmarks.comparison.measures import result_measures

    folder = write_run(tmp_path, "naive")

    def score_every_second(result):
        result["scored"] = [0, 2, 4]
        result["measures"] = result_measures(result, fresh=False)

    change(folder, score_every_second)
    (run,) = read_runs(tmp_path)["permuted-digits"]["naive"]
    found = series.curves({"naive": [run]})
    grids = series.grids(run)
    assert len(found["learning_accuracy"]["naive"]["mean"]) == len(grids["accuracy"]["first"]) == 3
    assert len(found["dead_fraction"]["naive"]["mean"]) == len(grids["units"]["first"]) == 6
    assert [len(row) for row in series.matrix([run])] == [1, 2, 3] and len(grids["matrix"]["first"]) == 3
    assert len(series.layers([run])["dead"][0]) == len(grids["layers"]["first"]) == 6


def test_layers_and_the_whole_network(tmp_path):
    for seed in range(2):
        folder = write_run(tmp_path, "naive", seed, layers=("one", "two"), dead=0.4 + seed / 10)

        def grow(result):
            for index, entry in enumerate(result["units"]):
                entry["layers"]["one"]["over_active"] = index / 10
                if index >= 3:
                    entry["layers"]["late"] = {"size": 7, "dead": 0.5, "dormant": 0.5, "over_active": 0.0}

        change(folder, grow)
    runs = read_runs(tmp_path)["permuted-digits"]["naive"]
    found = series.layers(runs)
    assert found["names"] == ["one", "two", "late"] and found["sizes"] == [128, 128, 7]
    assert found["over_active"][0] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert found["dead"][2] == [None, None, None, 0.5, 0.5, 0.5]
    whole = [np.mean([run.units[i]["dead_fraction"] for run in runs]) for i in range(6)]
    assert found["dead"][3] == pytest.approx(whole, rel=1e-3)


def test_matrix_is_the_mean_over_seeds_below_the_diagonal(strategies):
    for name in ("naive", "fresh"):
        found = series.matrix(strategies[name])
        assert [len(row) for row in found] == [1, 2, 3, 4, 5, 6]
        for i, row in enumerate(found):
            for j, value in enumerate(row):
                slow = np.mean([run.accuracy_matrix[i, j] for run in strategies[name]])
                assert (value is None) == bool(np.isnan(slow))
                assert value is None or value == pytest.approx(slow, rel=1e-3)


def test_a_long_streams_matrix_is_made_small(tmp_path):
    write_run(tmp_path, "naive")
    (run,) = read_runs(tmp_path)["permuted-digits"]["naive"]
    run = replace(run, accuracy_matrix=np.random.default_rng(0).random((150, 150)), scored=list(range(150)))
    found = series.matrix([run])
    assert len(found) == 50  # three experiences each
    lower = np.tril(np.ones((150, 150), dtype=bool))
    block = np.s_[60:63, 60:63]
    assert found[20][20] == pytest.approx(run.accuracy_matrix[block][lower[block]].mean(), rel=1e-3)
    assert found[49][3] == pytest.approx(run.accuracy_matrix[147:150, 9:12].mean(), rel=1e-3)
    assert len(json.dumps(found)) < 20_000


def test_activity_before_and_after(strategies, tmp_path):
    assert activity(strategies["redo"]) is None
    for seed in (4, 7):
        folder = write_run(tmp_path, "redo", seed)

        def record(result):
            result["treatments"] = [
                {"method": "redo", "experience": index % 6, "units": {}, "activity_before": {"one": [index] + [0] * 19},
                 "activity_after": {"one": [0] * 20, "two": [1] * 20}}
                for index in range(200)
            ]  # fmt: skip

        if seed == 7:
            change(folder, record)
        else:
            change(folder, lambda result: result.update(treatments=[]))
        change(folder, lambda result: result["measures"].pop("treated_units"))
        change(folder, lambda result: [result["measures"].pop(n, None) for n in ("output_shift", "accuracy_damage")])
    found = activity(read_runs(tmp_path)["permuted-digits"]["redo"])
    assert found["seed"] == 7 and found["layers"] == ["one"]
    shown = [entry["before"][0][0] for entry in found["interventions"]]
    assert len(shown) == SHOWN and shown[0] == 0 and shown[-1] == 199 and sorted(set(shown)) == shown
    assert found["interventions"][1]["after"] == [[0] * 20]


@pytest.mark.parametrize("wrong", [None, {"one": [1] * 19}, {"one": [-1] + [0] * 19}, {"one": [0.5] * 20}, [[1] * 20]])
def test_activity_of_another_kind_is_refused(strategies, wrong):
    entry = {"activity_before": {"one": [1] * 20}, "activity_after": wrong}
    run = replace(strategies["redo"][0], treatments=[entry])
    with pytest.raises(UserError, match=r"^permuted-digits/redo/seed-0: activity_after of a treatment should hold 20"):
        activity([run])


def test_points_have_recovery_where_there_is_any(strategies, tmp_path):
    for seed in range(3):
        write_run(tmp_path, "naive", seed, end=0.5)
        write_run(tmp_path, "fresh", seed, end=0.9)
        write_run(tmp_path, "redo", seed, end=0.8)
    rows = comparison_rows(read_runs(tmp_path))
    found = scatter(rows)
    assert found["axes"] == {"x": "forgetting", "y": "recovery"} and found["lines"] == [0, 1]
    assert [point["name"] for point in found["points"]] == ["naive", "redo"]  # fresh forgets nothing
    by_name = {row["strategy"]: row for row in rows}
    assert found["points"][1]["y"] == pytest.approx(list(by_name["redo"]["recovery"].values()), rel=1e-3)
    without = scatter(comparison_rows({"b": {name: strategies[name] for name in ("naive", "redo")}}))
    assert without["axes"]["y"] == "late learning accuracy" and without["lines"] == []
    assert [point["name"] for point in without["points"]] == ["naive", "redo"]
    assert scatter(rows[:1]) is None
