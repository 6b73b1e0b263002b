"""The page in a real browser: plots, tables, keyboard, phone, dark mode, print, and while runs are going on."""

import json
import time

import pytest
from browser import Browser, needs_chromium
from test_comparison_results import edit, write_benchmark, write_run
from test_report_live import write_unfinished

from benchmarks.comparison import compare, watching
from benchmarks.comparison.measures import result_measures
from benchmarks.comparison.results import read_runs
from benchmarks.comparison.writing import write_whole

pytestmark = needs_chromium

FEW = ["naive", "fresh", "replay+hyper-hypo", "synaptic-stripping"]
MANY = [f"method-{index}:option_number={index}" for index in range(26)]


def with_activity(folder):
    path = folder / "result.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    for index, entry in enumerate(result["treatments"]):
        entry["activity_before"] = {"one": [60 + index, *[2] * 19], "two": [0] * 19 + [5]}
        entry["activity_after"] = {"one": [10 + index, *[4] * 19], "two": [0] * 19 + [3]}
    edit(path, **result)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def small(folder):
    """Two benchmarks: four strategies of three seeds, and one of nine layers."""
    results = write_benchmark(folder / "small", layers=("one", "two"))
    for seed in range(3):
        with_activity(results / f"permuted-digits/synaptic-stripping/seed-{seed}")
    write_run(results, benchmark="split-cifar10", end=0.6, layers=tuple(f"layer{index}.conv" for index in range(9)))
    return results


@pytest.fixture(scope="module")
def page(folder, small):
    compare(small, "html", folder / "small.html")
    return folder / "small.html"


@pytest.fixture(scope="module")
def many(folder):
    """28 strategies, two seeds each."""
    for seed in range(2):
        for index, name in enumerate(MANY):
            write_run(folder / "many", name, seed, end=0.5 + 0.01 * index, dead=index / 30)
        write_run(folder / "many", "naive", seed, end=0.45)
        write_run(folder / "many", "fresh", seed, end=0.9)
    compare(folder / "many", "html", folder / "many.html")
    return folder / "many.html"


@pytest.fixture(scope="module")
def browser(folder):
    found = Browser(folder / "profile")
    yield found
    found.close()


ACCURACY = 'section figure[data-key="learning_accuracy"]'
LINES = "return document.querySelectorAll(arguments[0] + ' .mark-line path').length"


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


def test_legend_and_picker_choose_what_the_plots_show(browser, many):
    browser.open(many)
    assert browser.do(LINES, ACCURACY) == 6
    chips = browser.do("return [...document.querySelectorAll('.chip')].map((chip) => chip.dataset.strategy)")
    assert chips[:2] == ["naive", "fresh"] and set(chips[2:]) == set(MANY[-4:])
    browser.find(f'.chip[data-strategy="{MANY[-1]}"]').click()
    browser.until(f"return ({LINES[7:]}) === 5", ACCURACY)
    pressed = "return document.querySelector(`.chip[data-strategy='${arguments[0]}']`).getAttribute('aria-pressed')"
    assert browser.do(pressed, MANY[-1]) == "false" and browser.do(pressed, "naive") == "true"

    browser.find("#picker summary").click()
    browser.find(f'#picker input[value="{MANY[3]}"]').click()
    browser.until(f"return ({LINES[7:]}) === 6", ACCURACY)
    browser.find('#picker button[data-preset="all"]').click()
    browser.until(f"return ({LINES[7:]}) === 28", ACCURACY)
    styles = browser.do("return selection.chosen.map((name) => JSON.stringify(selection.style(name)))")
    assert len(set(styles)) == 28
    browser.find("#bands").click()
    bands = "[...document.querySelectorAll(arguments[0] + ' .mark-area path')].filter((path) => path.getAttribute('d'))"
    browser.until(f"return {bands}.length === 0", ACCURACY)
    browser.find('#picker button[data-preset="references"]').click()
    browser.until(f"return ({LINES[7:]}) === 2", ACCURACY)
    browser.find("#bands").click()
    browser.press("ESCAPE")
    assert browser.do("return !document.getElementById('picker').open")

    browser.driver.refresh()  # the choice outlasts a reload
    browser.until("return document.body.classList.contains('drawn')")
    assert browser.do(LINES, ACCURACY) == 2
    browser.do("sessionStorage.clear()")
    assert browser.errors() == []


def test_the_strategy_under_the_pointer_stands_out(browser, page):
    browser.open(page)
    browser.point('.chip[data-strategy="naive"]', 0.5)
    opacities = """return [...document.querySelectorAll(arguments[0] + ' .mark-line path')]
                     .map((path) => Number(path.getAttribute('opacity') ?? 1)).sort()"""
    browser.until(f"const found = (() => {{ {opacities} }})(); return found[0] < 0.5 && found[3] === 1", ACCURACY)
    browser.point("h1", 0.5)
    browser.until(f"return (() => {{ {opacities} }})()[0] === 1", ACCURACY)


def column(browser, table, name):
    return browser.do(
        """const table = document.getElementById(arguments[0]);
           const column = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent.trim() === arguments[1]);
           return [...table.tBodies[0].rows].map((row) => row.cells[column].textContent.trim())""",
        table,
        name,
    )


def test_tables_sort(browser, page):
    browser.open(page)
    head = (
        "return [...document.querySelectorAll('#numbers-1 thead button')].find((b) => b.textContent === arguments[0])"
    )
    button = browser.do(head, "forgetting")
    button.click()
    numbers = [cell[:5] for cell in column(browser, "numbers-1", "forgetting")]
    assert numbers[-1] == "–" and numbers[:-1] == sorted(numbers[:-1], reverse=True)  # the undefined one stays last
    assert column(browser, "numbers-1", "strategy")[0] == "synaptic-stripping"
    button.send_keys("\n")  # the keyboard does it too
    assert [cell[:5] for cell in column(browser, "numbers-1", "forgetting")] == [*reversed(numbers[:-1]), "–"]
    assert button.find_element("xpath", "..").get_attribute("aria-sort") == "ascending"
    browser.do(head, "strategy").click()
    names = column(browser, "numbers-1", "strategy")
    assert names == sorted(names)
    assert button.find_element("xpath", "..").get_attribute("aria-sort") is None


def test_tables_show_their_other_columns_on_demand(browser, page):
    browser.open(page)
    hidden = "return [...document.querySelectorAll('#numbers-1 thead th')].filter((cell) => !cell.offsetWidth).length"
    assert browser.do(hidden) > 5
    browser.find('input[data-columns="numbers-1"]').click()
    assert browser.do(hidden) == 0
    browser.do("sessionStorage.clear()")


def test_values_are_read_with_pointer_and_keyboard(browser, page, small):
    browser.open(page)
    naive = read_runs(small)["permuted-digits"]["naive"]
    mean = sum(run.learning_accuracy for run in naive) / 3
    browser.point(f"{ACCURACY} .stage", 0.99)
    tip = browser.until(f"const tip = document.querySelector('{ACCURACY} .tip'); return !tip.hidden && tip.textContent")
    assert tip.startswith("experience 6") and f"naive{mean[5]:.3f} ± " in tip
    other = "document.querySelector('figure[data-key=dead_fraction] .mark')"
    assert browser.do(f"return !{other}.hidden")  # the same experience in the other plots

    browser.do(f"document.querySelector('{ACCURACY} .plot').focus()")
    browser.press("ESCAPE")
    assert browser.do(f"return document.querySelector('{ACCURACY} .tip').hidden")
    browser.press("HOME", "ARROW_RIGHT", "ARROW_RIGHT")
    said = browser.do(f"return document.querySelector('{ACCURACY} .said').textContent")
    assert said.startswith("experience 3, ") and f"naive {mean[2]:.3f} ± " in said
    browser.press("END")
    assert "experience 6, " in browser.do(f"return document.querySelector('{ACCURACY} .said').textContent")
    line, axis = browser.do(
        f"""const mark = document.querySelector('{ACCURACY} .mark').getBoundingClientRect();
            const ticks = [...document.querySelectorAll('{ACCURACY} .role-axis-tick line')];
            return [mark.left + mark.width / 2, Math.max(...ticks.map((tick) => tick.getBoundingClientRect().left))]"""
    )
    assert abs(line - axis) < 1.5

    matrix = naive[0].accuracy_matrix
    browser.do("document.querySelector('figure.matrix .plot').focus()")
    browser.press("ARROW_DOWN", "ARROW_LEFT", "ARROW_LEFT", "ARROW_UP")
    said = browser.do("return document.querySelector('figure.matrix .said').textContent")
    both = sum(run.accuracy_matrix for run in naive) / 3
    assert said == f"after experience 5, on experience 4, test accuracy {both[4, 3]:.3f}" and matrix.shape == (6, 6)

    browser.do("document.querySelector('figure[data-kind=scatter] .plot').focus()")
    browser.press("ARROW_RIGHT", "END")
    said = browser.do("return document.querySelector('figure[data-kind=scatter] .said').textContent")
    assert said.startswith("synaptic-stripping, recovery 0.8")  # it forgets most


def test_everything_can_be_reached_with_the_keyboard(browser, page):
    browser.open(page)
    browser.press("TAB")
    assert browser.do("return document.activeElement.className") == "skip"
    wanted = browser.do(
        """const all = "a[href], button, input, select, summary, [tabindex='0']";
           return [...document.querySelectorAll(all)].filter((e) => e.offsetParent && e.checkVisibility()).length"""
    )
    browser.do(
        """window.visited = [];
           document.addEventListener("focusin", (event) => {
             const style = getComputedStyle(event.target);
             const seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1;
             window.visited.push([seen, event.target.outerHTML.slice(0, 120)]);
           })"""
    )
    browser.press(*["TAB"] * (wanted - 1))
    visited = browser.do("return window.visited")
    assert len(visited) == wanted - 1 > 40
    assert [name for seen, name in visited if not seen] == []


WIDE = """const width = document.documentElement.clientWidth;
return { page: document.documentElement.scrollWidth, width,
  outside: [...document.querySelectorAll("body *")].filter((found) => {
    if (found.closest(".wide, #chips, .skip, .said, svg")) return false;
    const box = found.getBoundingClientRect();
    return box.width && (box.right > width + 1 || box.left < -1);
  }).map((found) => found.outerHTML.slice(0, 120)) }"""


@pytest.mark.parametrize("width", [390, 768])
@pytest.mark.parametrize("name", ["page", "many"])
def test_nothing_is_wider_than_a_phone(browser, request, name, width):
    browser.open(request.getfixturevalue(name), width)
    browser.do("for (const more of document.querySelectorAll('details')) more.open = true")
    browser.do("for (const box of document.querySelectorAll('input[data-columns]')) box.click()")
    seen = browser.do(WIDE)
    assert seen["page"] == seen["width"] == width and seen["outside"] == []
    browser.do("document.getElementById('picker').open = false; sessionStorage.clear()")
    for across in (0.05, 0.5, 0.95):  # nor is what the pointer brings up
        browser.point(f"{ACCURACY} .stage", across)
        assert not browser.do(f"return document.querySelector('{ACCURACY} .tip').hidden")
        assert browser.do(WIDE)["outside"] == [] and browser.do(WIDE)["page"] == width


CONTRAST = """
const luminance = (color) => {
  const parts = color.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
};
const ratio = (one, other) => {
  const [light, dark] = [luminance(one), luminance(other)].sort((a, b) => b - a);
  return (light + 0.05) / (dark + 0.05);
};
const ground = (found) => {
  for (let at = found; at; at = at.parentElement) {
    const color = getComputedStyle(at).backgroundColor;
    if (!/, 0\\)$/.test(color) && color !== "transparent") return color;
  }
  return "rgb(255, 255, 255)";
};
const faint = [];
for (const found of document.querySelectorAll("body *")) {
  const own = [...found.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!own || !found.checkVisibility() || found.closest("script, style, .role-mark")) continue;
  const style = getComputedStyle(found);
  const color = found.closest("svg") ? style.fill : style.color;
  const behind = ground(found.closest("svg")?.parentElement ?? found);
  if (ratio(color, behind) < 4.5) faint.push(found.outerHTML.slice(0, 120));
}
const panel = getComputedStyle(document.querySelector("figure")).backgroundColor;
const probe = document.createElement("i");
document.body.append(probe);
const lines = {};
for (const name of ["naive", "fresh", "unchosen", "c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7"]) {
  probe.style.color = `var(--${name})`;
  lines[name] = ratio(getComputedStyle(probe).color, panel);
}
probe.remove();
return { faint: [...new Set(faint)], lines, panel: luminance(panel), ground: luminance(ground(document.body)) };
"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_and_lines_have_contrast(browser, page, dark):
    browser.open(page, dark=dark)
    seen = browser.do(CONTRAST)
    assert seen["faint"] == []
    assert min(seen["lines"].values()) >= 2.5 and min(v for k, v in seen["lines"].items() if k != "unchosen") >= 4
    assert (max(seen["panel"], seen["ground"]) < 0.05) if dark else (min(seen["panel"], seen["ground"]) > 0.9)


def test_the_scheme_may_change_while_the_page_is_open(browser, page):
    browser.open(page)
    stroke = f"return getComputedStyle(document.querySelector('{ACCURACY} .mark-line path')).stroke"
    light = browser.do(stroke)
    browser.prefer("dark")
    assert browser.do(stroke) != light
    assert browser.do(CONTRAST)["faint"] == []


def test_print_is_light_and_whole(browser, page):
    browser.open(page, dark=True)
    browser.prefer("dark", media="print")
    browser.do("window.dispatchEvent(new Event('beforeprint'))")
    seen = browser.do(CONTRAST)
    assert seen["panel"] > 0.9 and seen["ground"] > 0.9 and seen["faint"] == []
    shown = browser.do(
        """const boxes = [...document.querySelectorAll(".wide")];
           return { position: getComputedStyle(document.querySelector(".legend")).position,
             picker: document.getElementById("picker").checkVisibility(),
             runs: [...document.querySelectorAll("details.runs")].every((more) => more.open),
             cut: boxes.filter((box) => box.scrollHeight > box.clientHeight + 2).length }"""
    )
    assert shown == {"position": "static", "picker": False, "runs": True, "cut": 0}
    pdf = browser.driver.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"]
    assert len(pdf) > 50_000


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


def test_tables_need_no_script(browser, page):
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.driver.get(page.as_uri())
        text = browser.find("body").text
        assert "This plot needs JavaScript" in text and "naive loses" in text
        assert "plasticity ratio" in text  # no column is hidden
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_while_runs_go_on_the_page_loads_itself_again(browser, folder, monkeypatch):
    monkeypatch.setattr(watching, "SECONDS", 0.5)
    results, page = write_benchmark(folder / "live", seeds=2), folder / "live.html"

    def write(done):
        write_unfinished(results, "redo", done=done)
        write_whole(page, watching.page(results, live=True))

    write(2)
    browser.open(page)
    lines = "return document.querySelectorAll('figure[data-kind=unfinished] .mark-line path').length"
    assert browser.do(lines) == 2
    browser.do("selection.toggle('fresh'); window.before = true")
    write(4)
    browser.until("return !window.before && document.body.textContent.includes('4 of 6')")
    browser.until("return document.body.classList.contains('drawn')")
    browser.until(
        "return document.querySelector('.chip[data-strategy=fresh]').getAttribute('aria-pressed') === 'false'"
    )

    browser.until("const pause = document.getElementById('pause'); pause.click(); return pause.textContent === 'Go on'")
    browser.do("window.before = true")
    write(5)
    time.sleep(1.2)
    assert browser.do("return window.before && document.body.textContent.includes('4 of 6')")
    browser.do("document.getElementById('pause').click()")
    browser.until("return document.body.textContent.includes('5 of 6')")

    write_whole(page, watching.page(results, live=False))
    browser.until("return !document.getElementById('pause') && document.body.classList.contains('drawn')")
    browser.do("window.before = true")
    time.sleep(0.9)
    assert browser.do("return window.before") and browser.errors() == []
    browser.do("sessionStorage.clear()")
