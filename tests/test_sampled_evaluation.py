"""Tests on a sample of the earlier experiences: which, what the result says, and that comparisons take it."""

import json

import numpy as np
import pytest

from benchmarks.cli import main
from benchmarks.comparison.measures import run_measures
from benchmarks.comparison.page import series
from benchmarks.comparison.results import read_runs
from benchmarks.comparison.validation import check_result
from benchmarks.evaluating import to_test
from plasticity.errors import UserError


def test_which_experiences_are_tested():
    assert [to_test(index, None, 0, last=9) for index in (0, 3)] == [[0], [0, 1, 2, 3]]
    assert to_test(0, 0, 0, last=9) == [0] and to_test(5, 0, 0, last=9) == [5]
    assert to_test(2, 2, 0, last=9) == [0, 1, 2] and to_test(9, 2, 0, last=9) == list(range(10))
    assert to_test(11, 2, 0, last=9) == list(range(12))
    for index in range(4, 9):
        chosen = to_test(index, 3, 5, last=9)
        assert len(set(chosen)) == 4 and chosen == sorted(chosen) and chosen[-1] == index
        assert chosen == to_test(index, 3, 5, last=20)


def test_the_sample_is_drawn_evenly_from_the_seed():
    counts = np.zeros(8)
    for seed in range(400):
        counts[to_test(8, 2, seed, last=99)[:-1]] += 1
    assert counts.sum() == 800 and counts.min() > 70 and counts.max() < 130
    assert to_test(8, 2, 1, last=99) != to_test(8, 2, 2, last=99)
    assert len({tuple(to_test(index, 1, 0, last=99)[:-1]) for index in range(20, 40)}) > 5


def slow_forgetting(matrix):
    size = len(matrix)
    falls = []
    for j in range(size - 1):
        known = [matrix[row][j] for row in range(j, size - 1) if matrix[row][j] is not None]
        falls.append(max(known) - matrix[-1][j])
    return sum(falls) / len(falls)


def test_measures_of_a_matrix_with_gaps():
    generator = np.random.default_rng(0)
    full = [[float(generator.random()) if j <= i else None for j in range(7)] for i in range(7)]
    gaps = [[row[j] if j in to_test(i, 2, 0, last=6) else None for j in range(7)] for i, row in enumerate(full)]
    assert sum(value is None for row in gaps for value in row) > sum(value is None for row in full for value in row)
    whole, sampled = run_measures(full, False), run_measures(gaps, False, sampled=True)
    assert sampled["forgetting"] == pytest.approx(slow_forgetting(gaps)) and sampled["forgetting"] < whole["forgetting"]
    assert {**sampled, "forgetting": None} == {**whole, "forgetting": None}
    assert run_measures(full, False, sampled=True) == whole
    with pytest.raises(ValueError, match="is missing"):
        run_measures(gaps, False)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Runs with every experience tested, and with one earlier one only."""
    found = {}
    for name, more in (("all", []), ("one", ["--evaluate", "1"])):
        folder = tmp_path_factory.mktemp(name)
        words = ["split-digits", "--strategies", "naive,fresh", "--seeds", "2", "--experiences", "5", "--epochs", "1"]
        assert main(["run", *words, "--out", str(folder), *more]) == 0
        found[name] = folder
    return found


def read(folder, strategy, seed=0):
    return json.loads((folder / "split-digits" / strategy / f"seed-{seed}" / "result.json").read_text())


def test_a_run_says_so_and_measures_the_same_where_it_measures(results):
    one, every = read(results["one"], "naive"), read(results["all"], "naive")
    assert one["evaluate"] == 1 and "evaluate" not in every
    for index, (row, full) in enumerate(zip(one["accuracy_matrix"], every["accuracy_matrix"], strict=True)):
        tested = to_test(index, 1, 0, last=4)
        assert [j for j, value in enumerate(row) if value is not None] == tested
        assert [row[j] for j in tested] == [full[j] for j in tested]
    config = json.loads((results["one"] / "split-digits" / "naive" / "seed-0" / "config.json").read_text())
    assert config["settings"]["evaluate"] == 1
    lines = (results["one"] / "split-digits" / "naive" / "seed-0" / "metrics.jsonl").read_text()
    assert lines.count("Top1_Acc_Exp/eval_phase") == 1 + 2 + 2 + 2 + 5
    assert read(results["one"], "fresh")["accuracy_matrix"] == read(results["all"], "fresh")["accuracy_matrix"]


def test_comparisons_take_it_and_do_not_mix_it(results, tmp_path, capsys):
    runs = read_runs(results["one"])["split-digits"]["naive"]
    every = read_runs(results["all"])["split-digits"]["naive"]
    shown = series.matrix(runs)
    for i, row in enumerate(shown):
        for j, value in enumerate(row):
            known = [run.accuracy_matrix[i, j] for run in runs if np.isfinite(run.accuracy_matrix[i, j])]
            assert value == (pytest.approx(np.mean(known), rel=1e-3) if known else None)
    so_far = series.run_series(runs[0])["accuracy_so_far"]
    expected = series.run_series(every[0])["accuracy_so_far"]
    assert so_far[[0, 1, 4]] == pytest.approx(expected[[0, 1, 4]])
    row = runs[0].accuracy_matrix[3]
    assert so_far[3] == pytest.approx((row[3] + 3 * np.nanmean(row[:3])) / 4)
    assert main(["compare", str(results["one"]), "--format", "html", "--output", str(tmp_path / "page.html")]) == 0
    assert "evaluate" in (tmp_path / "page.html").read_text()
    (tmp_path / "mixed" / "split-digits").mkdir(parents=True)
    for name, strategy in (("one", "naive"), ("all", "fresh")):
        (tmp_path / "mixed" / "split-digits" / strategy).symlink_to(results[name] / "split-digits" / strategy)
    with pytest.raises(UserError, match="evaluate is"):
        read_runs(tmp_path / "mixed")


def test_what_does_not_fit_what_the_result_says_is_refused(results):
    content = read(results["one"], "naive")
    check_result(content, False)
    with pytest.raises(ValueError, match=r"accuracy_matrix\[2\] should have 2 entries before the diagonal, not 1"):
        check_result({**content, "evaluate": 2}, False)
    with pytest.raises(ValueError, match="evaluate should be of type int"):
        check_result({**content, "evaluate": "1"}, False)
    with pytest.raises(ValueError, match="is missing"):
        check_result({name: value for name, value in content.items() if name != "evaluate"}, False)


def test_the_config_of_a_run_runs_again_and_mistakes_are_told(results, tmp_path, capsys):
    config = results["one"] / "split-digits" / "naive" / "seed-0" / "config.json"
    assert main(["run", "--config", str(config), "--out", str(tmp_path)]) == 0
    assert read(tmp_path, "naive")["accuracy_matrix"] == read(results["one"], "naive")["accuracy_matrix"]
    for value in ("-1", "some"):
        words = ["run", "split-digits", "--strategies", "naive", "--seeds", "1", "--out", str(tmp_path)]
        assert main([*words, f"--evaluate={value}"]) == 2
        assert "--evaluate" in capsys.readouterr().err
