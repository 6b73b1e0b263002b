"""The page in a real browser: pointer and keyboard choose, sort and read values."""

from browser import needs_chromium
from report_scripts import ACCURACY, LINES, MANY

from benchmarks.comparison.results import read_runs

pytestmark = needs_chromium


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
