"""The page in a real browser: on a phone, in the dark, on paper, and without scripts."""

import pytest
from browser import needs_chromium
from report_scripts import ACCURACY, CONTRAST, WIDE

pytestmark = needs_chromium


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


def test_tables_need_no_script(browser, page):
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.driver.get(page.as_uri())
        text = browser.find("body").text
        assert "This plot needs JavaScript" in text and "naive loses" in text
        assert "plasticity ratio" in text  # no column is hidden
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
