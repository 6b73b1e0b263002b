"""Pages, and the browser that opens them: one for all tests of a process."""

import json

import pytest
from browser import Browser
from report_scripts import MANY
from test_comparison_results import edit, write_benchmark, write_run

from benchmarks.comparison import compare


def with_activity(folder):
    path = folder / "result.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    for index, entry in enumerate(result["treatments"]):
        entry["activity_before"] = {"one": [60 + index, *[2] * 19], "two": [0] * 19 + [5]}
        entry["activity_after"] = {"one": [10 + index, *[4] * 19], "two": [0] * 19 + [3]}
    edit(path, **result)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="session")
def small(folder):
    """Two benchmarks: four strategies of three seeds, and one of nine layers."""
    results = write_benchmark(folder / "small", layers=("one", "two"))
    for seed in range(3):
        with_activity(results / f"permuted-digits/synaptic-stripping/seed-{seed}")
    write_run(results, benchmark="split-cifar10", end=0.6, layers=tuple(f"layer{index}.conv" for index in range(9)))
    return results


@pytest.fixture(scope="session")
def page(folder, small):
    compare(small, "html", folder / "small.html")
    return folder / "small.html"


@pytest.fixture(scope="session")
def many(folder):
    """28 strategies, two seeds each."""
    for seed in range(2):
        for index, name in enumerate(MANY):
            write_run(folder / "many", name, seed, end=0.5 + 0.01 * index, dead=index / 30)
        write_run(folder / "many", "naive", seed, end=0.45)
        write_run(folder / "many", "fresh", seed, end=0.9)
    compare(folder / "many", "html", folder / "many.html")
    return folder / "many.html"


@pytest.fixture(scope="session")
def browser(folder):
    found = Browser(folder / "profile")
    yield found
    found.close()
