"""The page in a real browser: its plots show the numbers of the runs."""

import json

import pytest
from browser import needs_chromium
from test_comparison_results import edit, write_run

from benchmarks.comparison import compare
from benchmarks.comparison.measures import result_measures
from benchmarks.comparison.results import read_runs

pytestmark = needs_chromium


def test_it_opens_without_errors_or_requests_and_every_plot_has_marks(browser, page):
    browser.open(page)
    figures = browser.do(
        """return [...document.querySelectorAll("figure")].filter((figure) => !figure.hidden).map((figure) => ({
             name: figure.dataset.kind ?? figure.className, key: figure.dataset.key ?? "",
             label: figure.querySelector(".plot").getAttribute("aria-label"),
             lines: figure.querySelectorAll(".mark-line path").length,
             cells: figure.querySelectorAll(".mark-rect.role-mark path").length,
             points: figure.querySelectorAll(".mark-symbol.role-mark path").length,
             bands: [...figure.querySelectorAll(".mark-area path")].filter((path) => path.getAttribute("d")).length,
             width: figure.querySelector("svg").getBoundingClientRect().width,
           }))"""
    )
    assert browser.errors() == []
    assert browser.do("return performance.getEntriesByType('resource').length") == 0
    assert all(figure["lines"] + figure["cells"] + figure["points"] > 0 and figure["width"] > 150 for figure in figures)
    assert all(len(figure["label"]) > 40 for figure in figures)
    accuracy = [figure for figure in figures if figure["key"] == "learning_accuracy"]
    assert [figure["lines"] for figure in accuracy] == [4, 1]
    assert [figure["bands"] for figure in accuracy] == [4, 0]  # the second benchmark has a single seed
    assert [f["points"] for f in figures if f["name"] == "scatter"] == [3]  # fresh forgets nothing
    assert [f["cells"] for f in figures if f["name"] == "matrix"] == [21, 21, 21, 21]
    layers = [figure for figure in figures if figure["name"] == "layers"]
    assert [figure["lines"] for figure in layers] == [3] * 6 + [0] * 6
    assert [figure["cells"] for figure in layers] == [0] * 6 + [6 * 10] * 6
    assert [f["cells"] for f in figures if f["name"] == "activity"] == [40]
    keys = {figure["key"] for figure in figures if figure["name"] == "curves"}
    assert {"dead_fraction", "dormant_fraction", "over_active_fraction", "effective_rank", "output_shift"} <= keys


def test_lines_are_where_their_numbers_are(browser, page, small):
    browser.open(page)
    paths = browser.do(
        """const chart = Chart.all.find((chart) => chart.key === "learning_accuracy");
           return chart.lines().map(({name, mean}, index) => ({ name, mean,
             drawn: mean.map((value, point) => [chart.view.scale("x")(point + 1), chart.view.scale("y")(value)]),
             path: [...chart.figure.querySelectorAll(".mark-line path")].map((path) => path.getAttribute("d")) }))"""
    )
    runs = read_runs(small)["permuted-digits"]
    for line in paths:
        mean = sum(run.learning_accuracy for run in runs[line["name"]]) / 3
        assert line["mean"] == pytest.approx(mean.tolist(), rel=1e-3)
        wanted = "M" + "L".join(f"{x:.0f},{y:.0f}" for x, y in line["drawn"])
        found = [
            "M" + "L".join(",".join(f"{float(n):.0f}" for n in point.split(",")) for point in path[1:].split("L"))
            for path in line["path"]
        ]
        assert wanted in found


def test_two_strategies_stand_side_by_side(browser, page):
    browser.open(page)
    menus = "return [...document.querySelectorAll('#benchmark-1 select.strategy')].map((menu) => menu.value)"
    assert browser.do(menus) == ["naive", "synaptic-stripping"]
    label = "document.querySelector('#benchmark-1 figure.matrix .plot').getAttribute('aria-label')"
    assert "naive" in browser.do(f"return {label}")
    browser.do(
        """const menu = document.querySelector("#benchmark-1 select.strategy");
           menu.value = "fresh"; menu.dispatchEvent(new Event("change"))"""
    )
    browser.until(f"return {label}.includes('of fresh')")
    cells = "return document.querySelectorAll('#benchmark-1 figure.matrix .mark-rect.role-mark path').length"
    browser.until(f"{cells} === 11 + 21")  # fresh: the diagonal, and its last network on all
    browser.do("sessionStorage.clear()")
    assert browser.errors() == []


def test_activity_before_and_after_each_intervention(browser, page):
    browser.open(page)
    figure = "figure.activity:not([hidden])"
    assert browser.do(f"return document.querySelectorAll('{figure}').length") == 1
    label = f"document.querySelector('{figure} .plot').getAttribute('aria-label')"
    assert "60 units fire on less than 5% of samples before it, 10 after it" in browser.do(f"return {label}")
    browser.do(f"document.querySelector('{figure} input').focus()")
    browser.press("END")
    last = 4  # five interventions
    browser.until(f"return {label}.includes('{60 + last} units fire')")
    assert "5 of 5, experience 6" in browser.do(f"return document.querySelector('{figure} output').textContent")
    browser.do(
        f"""const menu = document.querySelector("{figure} select");
            menu.value = "1"; menu.dispatchEvent(new Event("input"))"""
    )
    browser.until(f"return {label}.includes('0 units fire on less than 5% of samples before it, 0 after it')")


def test_experiences_that_are_not_scored_leave_no_gaps(browser, folder):
    for seed in range(2):
        path = write_run(folder / "scored", "naive", seed) / "result.json"
        result = json.loads(path.read_text(encoding="utf-8")) | {"scored": [0, 2, 4]}
        edit(path, scored=[0, 2, 4], measures=result_measures(result, fresh=False))
    compare(folder / "scored", "html", folder / "scored.html")
    browser.open(folder / "scored.html")
    found = browser.do(
        """const [chart] = Chart.all.filter((chart) => chart instanceof Matrix);
           const curve = Chart.all.find((chart) => chart.key === "learning_accuracy");
           return { cells: chart.cells().map(({ x0, x1, y0, y1 }) => [x0, x1, y0, y1]), x: curve.middles,
                    head: chart.found.at(-2).head, text: document.querySelector("#benchmark-1 h2 + p").textContent }"""
    )
    edges = [0.5, 2.5, 4.5, 6.5]  # one cell reaches to the next experience that is scored, the last to the end
    assert found["cells"] == [[edges[j], edges[j + 1], edges[i], edges[i + 1]] for i in range(3) for j in range(i + 1)]
    assert found["x"] == [1, 3, 5]
    assert found["head"] == "after experience 5, on experience 3"
    assert "6 experiences, of which 3 are scored" in " ".join(found["text"].split())
    assert browser.errors() == []
