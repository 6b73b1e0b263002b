"""Runs whose network became NaN or infinite: they say so, and comparisons show it."""

import csv
import io
import json
import math

import pytest
import torch
from test_comparison_results import edit, error_of, write_benchmark, write_run

from benchmarks.cli import main
from benchmarks.comparison import compare
from benchmarks.comparison.results import read_run, read_runs
from benchmarks.comparison.wording import DIVERGED
from benchmarks.judging import first_diverged
from benchmarks.observing import OnlineAccuracyPlugin
from benchmarks.publishing import markdown
from benchmarks.publishing.runs import content

FORMATS = ("table", "csv", "json", "html")


def diverge(folder, experience):
    """Mark a written run as diverged from an experience on."""
    path = folder / "result.json"
    result = json.loads(path.read_text())
    for entry in result["units"][experience:]:
        entry["diverged"] = "'0.weight' of its weights are not finite"
    edit(path, units=result["units"], diverged=experience)


@pytest.fixture
def results(tmp_path):
    write_benchmark(tmp_path)
    for seed in (0, 2):
        diverge(tmp_path / "permuted-digits" / "naive" / f"seed-{seed}", 3 - seed)
    return tmp_path


def test_every_output_shows_how_many_runs_diverged_and_the_rest_stays(results, tmp_path_factory):
    healthy = write_benchmark(tmp_path_factory.mktemp("healthy"))
    before, after = ({form: compare(folder, form) for form in FORMATS} for folder in (healthy, results))
    assert not any("iverged" in text for text in before.values())

    rows = json.loads(after["json"])
    assert [row.pop("diverged", None) for row in rows] == [2, None, None, None]
    assert rows == json.loads(before["json"])

    table = list(csv.DictReader(io.StringIO(after["csv"])))
    assert [row.pop("diverged") for row in table] == ["2", "0", "0", "0"]
    assert table == list(csv.DictReader(io.StringIO(before["csv"])))

    plain, other = after["table"].splitlines(), before["table"].splitlines()
    assert DIVERGED in " ".join(after["table"].split()) and sum("2 of 3 diverged" in line for line in plain) == 1
    name = next(index for index, line in enumerate(plain) if line.startswith("naive"))
    assert "2 of 3 diverged" in plain[name + 1] and max(map(len, plain)) <= max(120, *map(len, other))

    page = after["html"]
    assert page.count("<small>2 of 3 diverged</small>") == 1
    assert (
        page.count("<small>diverged, experience 3</small>") == page.count("<small>diverged, experience 1</small>") == 1
    )
    assert "2 of 3 runs of naive diverged, the first after experience 1." in page and DIVERGED in page


def test_published_tables_show_it_and_others_stay_byte_equal(results, tmp_path_factory):
    healthy = content(read_runs(write_benchmark(tmp_path_factory.mktemp("healthy"))), ["x"])
    found = content(read_runs(results), ["x"])
    assert "diverged" not in json.dumps(healthy) and found["rows"][0] == healthy["rows"][0] | {
        "diverged": 2,
        "seeds": 3,
    }
    assert found["rows"][1:] == healthy["rows"][1:]
    lines, others = markdown(found).splitlines(), markdown(healthy).splitlines()
    assert lines[2].startswith("| naive, 2 of 3 diverged |") and lines[2].split("|")[2:] == others[2].split("|")[2:]
    assert lines[3:] == others[3:]


def test_a_mark_that_does_not_fit_is_refused(tmp_path):
    path = write_run(tmp_path) / "result.json"
    edit(path, diverged=2)
    assert "diverged is 2, but the units say []" in error_of(tmp_path)
    diverge(path.parent, 3)
    assert read_run(path.parent).diverged == 3
    edit(path, diverged=4)
    assert "diverged is 4, but the units say [3]" in error_of(tmp_path)


def test_the_first_experience_counts():
    assert first_diverged([{}, {"diverged": "a"}, {}, {"diverged": "b"}]) == {"diverged": 1}
    assert first_diverged([{}, {}]) == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2.0])
def test_the_last_loss_counts_too_and_is_saved(value):
    class Strategy:
        loss = torch.tensor([value], requires_grad=True)

    plugin, other = OnlineAccuracyPlugin(), OnlineAccuracyPlugin()
    assert plugin.wrong_loss() is None
    plugin.after_training_exp(Strategy())
    other.load_state_dict(plugin.state_dict())
    for each in (plugin, other):
        assert (each.wrong_loss() is None) == (value == 2.0)
    assert not plugin.state_dict()["loss"].requires_grad


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("strategy", ["naive", "redo:every=5+l2-init", "fire", "continual-backprop"])
@pytest.mark.filterwarnings("ignore:.*Plugin.*")
def test_a_run_that_diverges_is_finished_marked_and_measured(strategy, tmp_path, capsys):
    """At a rate of 1e30 the first updates already end in NaN."""
    threads = torch.get_num_threads()
    small = ["--experiences", 2, "--epochs", 1, "--learning-rate", 1e30, "--optimizer", "sgd"]
    try:
        assert run("run", "permuted-digits", "--strategies", strategy, "--seeds", 1, "--out", tmp_path, *small) == 0
    finally:
        torch.set_num_threads(threads)
    (path,) = tmp_path.rglob("result.json")
    result = json.loads(path.read_text())
    assert result["diverged"] == 0 and "not finite" in result["units"][0]["diverged"]
    assert [len(row) for row in result["accuracy_matrix"]] == [2, 2] and None not in result["learning_accuracy"]
    said = capsys.readouterr().err
    assert said.count("has diverged in experience 0: ") == 1
    withheld = [entry for entry in result["treatments"] if "withheld" in entry]
    assert bool(withheld) == (strategy[:2] in ("re", "fi"))
    assert "1 of 1 diverged" in compare(tmp_path)


def test_a_run_that_does_not_diverge_has_no_mark(tmp_path, capsys):
    small = ["--experiences", 2, "--epochs", 1]
    assert run("run", "permuted-digits", "--strategies", "redo:every=5", "--seeds", 1, "--out", tmp_path, *small) == 0
    (path,) = tmp_path.rglob("result.json")
    assert "diverged" not in path.read_text() and "withheld" not in path.read_text()
    assert "diverged" not in capsys.readouterr().err
