"""The page: what it claims, what is in it, and how a real browser shows it."""

import base64
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from test_comparison_results import write_benchmark, write_run

from benchmarks.comparison import compare
from benchmarks.comparison.figures import COLORS, MARKERS, running_mean, styles
from benchmarks.comparison.results import read_runs
from benchmarks.comparison.rows import MEASURES
from benchmarks.comparison.summary import summary
from benchmarks.comparison.wording import WORDING


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    directory = write_benchmark(tmp_path_factory.mktemp("results"))
    write_run(directory, benchmark="split-cifar10", end=0.6, layers=tuple(f"layer{i}.conv" for i in range(9)))
    write_run(directory, "<b>bold & $x$", benchmark="split-cifar10", environment={"torch": "3.0", "gpu": None})
    return directory


@pytest.fixture(scope="module")
def page(results):
    return compare(results, "html")


class Elements(HTMLParser):
    """Collects the elements of a page and its text."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def sentences(directory, benchmark="permuted-digits"):
    return [sentence for topic in summary(read_runs(directory)[benchmark]) for sentence in topic]


def test_summary_says_what_the_intervals_show(results):
    said = sentences(results)
    rows = json.loads(compare(results, "json"))
    rows = {row["strategy"]: row for row in rows if row["benchmark"] == "permuted-digits"}
    gap = 100 * (rows["fresh"]["late_learning_accuracy"]["mean"] - rows["naive"]["late_learning_accuracy"]["mean"])
    assert re.fullmatch(rf"naive’s late learning accuracy is {gap:.1f} points \[[\d., ]+\] below fresh’s\.", said[0])
    mean, low, high = (100 * value for value in rows["synaptic-stripping"]["recovery"].values())
    assert f"synaptic-stripping recovers {mean:.0f}% [{low:.0f}, {high:.0f}] of that loss." in said
    assert any(sentence.startswith("replay+hyper-hypo shows no recovery: ") for sentence in said)
    dead = 100 * rows["naive"]["dead_fraction"]["mean"]
    assert any(s.startswith(f"At the end of the stream {dead:.1f}% [") for s in said)
    assert "synaptic-stripping has 66.0 points [66.0, 66.0] fewer." in said
    assert "synaptic-stripping forgets 5.0 points [5.0, 5.0] more." in said


def test_summary_of_a_method_that_harms(tmp_path):
    write_benchmark(tmp_path)
    for seed in range(3):
        write_run(tmp_path, "harmful", seed, end=0.3, dead=0.9)
    said = sentences(tmp_path)
    assert any(re.match(r"harmful learns less than naive: recovery −\d+% \[−", sentence) for sentence in said)
    assert any(re.match(r"harmful has 20\.0 points .* more\.", sentence) for sentence in said)


def test_summary_claims_nothing_without_intervals(tmp_path):
    write_benchmark(tmp_path, seeds=1)
    assert sentences(tmp_path) == [
        "One seed only for naive and fresh: there is no interval, and any difference may be chance."
    ]
    write_run(tmp_path, "redo", benchmark="other")
    assert "takes both naive and fresh" in sentences(tmp_path, "other")[0]


def test_summary_where_naive_loses_nothing(tmp_path):
    for seed, end in enumerate((0.9, 0.8, 0.85)):
        write_run(tmp_path, "naive", seed, end=end)
        write_run(tmp_path, "fresh", seed, end=0.85)
        write_run(tmp_path, "fresh", seed, end=end - 0.2, benchmark="reverse")
        write_run(tmp_path, "naive", seed, end=end, benchmark="reverse")
        write_run(tmp_path, "redo", seed, end=end, benchmark="reverse")
    assert "cannot be told apart" in sentences(tmp_path)[0]
    said = sentences(tmp_path, "reverse")
    assert re.search(r"points \[.*\] above fresh’s: no loss of plasticity\.$", said[0])
    assert not any("recover" in sentence for sentence in said)


def test_summary_admits_what_the_seeds_cannot_tell(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "naive", seed, end=0.5)
        write_run(tmp_path, "fresh", seed, end=0.9)
    write_run(tmp_path, "redo", 0, end=0.8)
    said = sentences(tmp_path)
    assert "For redo the seeds cannot tell." in said
    assert "No difference from naive is shown for redo." in said


def test_page_needs_nothing_else(page):
    elements = Elements(page)
    assert not elements.all("script") and not elements.all("link")
    for attributes in (attributes for _, attributes in elements.found):
        for name in ("src", "href", "srcset", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert "url(" not in page and "@import" not in page
    policy = next(meta["content"] for meta in elements.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'")


def test_page_has_the_numbers_the_pictures_and_the_settings(results, page):
    elements = Elements(page)
    text = " ".join(" ".join(elements.text).split())
    for row in json.loads(compare(results, "json")):
        assert row["strategy"].split("+")[-1] in text
        for measure in MEASURES:
            mean = row[measure]["mean"]
            if mean is not None and measure != "seconds":
                assert f"{mean:.{WORDING[measure].digits}f}".replace("-", "−") in text
    for measure in WORDING.values():
        assert measure.label in text and measure.definition in text
    for sentence in sentences(results):
        assert sentence in text
    for fact in ("learning_rate 0.005", "optimizer Adam", "python 3.11.7", "torch 2.9.0; 3.0 (differs between runs)"):
        assert fact in text
    pictures = elements.all("img")
    assert len(pictures) == 1 + 2 * 4 + 1 + 2 * 2
    for picture in pictures:
        kind, _, data = picture["src"].partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert base64.b64decode(data).startswith(b"<?xml")
        assert len(picture["alt"]) > 40
    assert len({picture["alt"] for picture in pictures}) == len(pictures)


@pytest.mark.parametrize(("experiences", "layers"), [(1, ("layer",)), (2, ()), (90, tuple("abcdefghijklmnopqrst"))])
@pytest.mark.filterwarnings("error")
def test_short_long_shallow_and_deep_runs_are_drawn(tmp_path, experiences, layers):
    write_benchmark(tmp_path, seeds=2, experiences=experiences, layers=layers)
    page = compare(tmp_path, "html")
    assert f"{experiences} experience" in page
    assert ("running mean over 5 experiences" in page) == (experiences == 90)


def test_names_are_escaped(page):
    assert "<b>" not in page and "&lt;b&gt;bold &amp; $x$" in page


def test_page_is_the_same_for_the_same_runs(results, page):
    assert compare(results, "html") == page


def test_styles_are_unique_and_references_fixed():
    names = [f"method-{index}" for index in range(30)]
    chosen = styles([*names, "naive", "fresh"])
    assert len({(style.color, style.marker) for style in chosen.values()}) == 32
    assert chosen["naive"] == styles(["naive"])["naive"]
    assert len(set(COLORS)) == 6 and len(set(MARKERS)) == 7


def test_running_mean_equals_a_loop():
    values = np.random.default_rng(0).random(12)
    for window in (1, 3, 5):
        half = window // 2
        slow = [np.mean(values[max(0, i - half) : i + half + 1]) for i in range(12)]
        assert running_mean(values, window) == pytest.approx(slow)


PROBE = """<!doctype html><meta charset="utf-8"><pre id="result"></pre>
<iframe id="frame" style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe>
<script>
onload = () => {{
  const inside = document.getElementById("frame").contentDocument;
  const images = [...inside.images];
  const boxes = [...inside.querySelectorAll(".wide")];
  document.getElementById("result").textContent = JSON.stringify({{
    page: inside.documentElement.scrollWidth,
    seen: inside.documentElement.clientWidth,
    images: images.length,
    drawn: images.filter((image) => image.complete && image.naturalWidth > 100).length,
    scrolling: boxes.filter((box) => box.scrollWidth > box.clientWidth).length,
    ground: getComputedStyle(inside.body).backgroundColor,
    ink: getComputedStyle(inside.body).color,
  }});
}};
</script>"""

QUIET = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --virtual-time-budget=5000 --dump-dom""".split()


def seen_in_chromium(page, folder, width, dark):
    """Loads the page in a frame of the given width and returns what the browser made of it."""
    probe = folder / "probe.html"
    probe.write_text(PROBE.format(width=width, page=html.escape(page)), encoding="utf-8")
    command = [
        shutil.which("chromium"),
        *QUIET,
        f"--user-data-dir={folder / 'profile'}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        probe.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(html.unescape(re.search(r'<pre id="result">(.*?)</pre>', done.stdout).group(1)))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1200, False)])
def test_page_in_a_browser(page, tmp_path, width, dark):
    seen = seen_in_chromium(page, tmp_path, width, dark)
    assert seen["page"] == seen["seen"], "the page scrolls sideways"
    assert seen["drawn"] == seen["images"] == 14
    assert seen["scrolling"] > 0 or width > 390  # wide tables scroll in their own boxes
    ground, ink = (sum(int(part) for part in re.findall(r"\d+", seen[key])[:3]) for key in ("ground", "ink"))
    assert (ground < 150 and ink > 600) if dark else (ground > 700 and ink < 150)
