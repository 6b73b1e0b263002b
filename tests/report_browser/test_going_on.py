"""The page in a real browser while runs are going on."""

import time

from browser import needs_chromium
from test_comparison_results import write_benchmark
from test_report_live import write_unfinished

from benchmarks.comparison import watching
from benchmarks.writing import write_whole

pytestmark = needs_chromium


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
