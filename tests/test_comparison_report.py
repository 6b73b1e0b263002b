"""The page as text: what it claims, what is in it, and that it needs nothing else."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from test_comparison_results import write_benchmark, write_run

from benchmarks.comparison import compare
from benchmarks.comparison.report import FIRST_SHOWN, first_shown
from benchmarks.comparison.results import read_runs
from benchmarks.comparison.rows import MEASURES
from benchmarks.comparison.summary import NAMED, summary
from benchmarks.comparison.wording import WORDING

ODD = '<b>bold & $x$</b></script> "quoted"'.replace("/", "")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    directory = write_benchmark(tmp_path_factory.mktemp("results"))
    write_run(directory, benchmark="split-cifar10", end=0.6, layers=tuple(f"layer{i}.conv" for i in range(9)))
    write_run(directory, ODD, benchmark="split-cifar10", environment={"torch": "3.0", "gpu": None})
    return directory


@pytest.fixture(scope="module")
def page(results):
    return compare(results, "html")


class Elements(HTMLParser):
    """Collects the elements of a page, its text and its scripts."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text, self.scripts = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append((dict(attributes), []))

    def handle_data(self, data):
        inside = self.cdata_elem
        if inside == "script":
            self.scripts[-1][1].append(data)
        elif inside != "style":
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]

    def script(self, wanted):
        return next("".join(text) for attributes, text in self.scripts if attributes == wanted)


def sentences(directory, benchmark="permuted-digits"):
    return [sentence for topic in summary(read_runs(directory)[benchmark]) for sentence in topic.sentences]


def test_summary_says_what_the_intervals_show(results):
    said = sentences(results)
    rows = json.loads(compare(results, "json"))
    rows = {row["strategy"]: row for row in rows if row["benchmark"] == "permuted-digits"}
    late = {name: row["late_learning_accuracy"]["mean"] for name, row in rows.items()}
    assert re.fullmatch(
        rf"naive loses {100 * (late['fresh'] - late['naive']):.1f} points \[[\d., ]+\] by the last 2 of 6 experiences: "
        rf"it learns them to {late['naive']:.3f}, and fresh networks with the same budget to {late['fresh']:.3f}\.",
        said[0],
    )
    mean, low, high = (100 * value for value in rows["synaptic-stripping"]["recovery"].values())
    won = f"synaptic-stripping recovers {mean:.0f}% [{low:.0f}, {high:.0f}] of that loss"
    assert said[1] == f"{won}, more than any other strategy here."
    assert said[2] == "replay+hyper-hypo cannot be told apart from naive with 3 seeds."
    dead = 100 * rows["naive"]["dead_fraction"]["mean"]
    assert any(s.startswith(f"At the end of the stream {dead:.1f}% [") for s in said)
    fewer = next(s for s in said if s.startswith("Fewer dead units than naive: "))
    assert "synaptic-stripping (by 66.0 points [66.0, 66.0])" in fewer and "fresh (by 60.0 points" in fewer
    assert "Forget more than naive: synaptic-stripping (by 5.0 points [5.0, 5.0])." in said
    assert "The forgetting of replay+hyper-hypo cannot be told apart from naive’s with 3 seeds." in said
    assert said[-1] == (
        "Dead units alone mislead: fewer of them than naive, and yet no better learning late in the stream is shown "
        "for replay+hyper-hypo."
    )


def test_summary_ranks_only_what_the_seeds_tell_apart(tmp_path):
    write_benchmark(tmp_path)
    for seed in range(3):
        write_run(tmp_path, "near", seed, end=0.84 + 0.02 * (seed - 1))
        write_run(tmp_path, "far", seed, end=0.7)
        write_run(tmp_path, "harmful", seed, end=0.3, dead=0.9)
    said = sentences(tmp_path)
    assert re.fullmatch(r"synaptic-stripping recovers \d+% \[\d+, \d+\] of that loss\.", said[1])
    assert re.fullmatch(r"With 3 seeds this cannot be told apart from it: near \(\d+% \[\d+, \d+\]\)\.", said[2])
    assert re.match(r"Better than naive, but less so than synaptic-stripping: far \(\d+% \[\d+, \d+\]\)\.", said[3])
    assert re.fullmatch(r"Worse than naive: harmful \(−\d+% \[−\d+, −\d+\]\)\.", said[4])
    assert any(s.startswith("More dead units than naive: harmful (by 20.0 points") for s in said)


def test_summary_of_unchanged_forgetting_gives_the_differences(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "naive", seed, end=0.5)
        write_run(tmp_path, "redo", seed, end=0.5, forgetting=0.1 + 0.01 * (seed - 1))
    said = sentences(tmp_path)
    assert any(
        re.fullmatch(
            r"No difference in forgetting from naive is shown with 3 seeds: redo \([+−]?0\.\d points \[−.*\]\)\.", s
        )
        for s in said
    )


def test_summary_claims_nothing_without_intervals(tmp_path):
    write_benchmark(tmp_path, seeds=1)
    said = sentences(tmp_path)
    assert said[0] == "One seed only: there are no intervals, and any difference may be chance."
    assert said[1].startswith("In it the networks learned the last 2 of 6 experiences to these accuracies: naive to 0.")
    assert len(said) == 2
    write_run(tmp_path, "redo", benchmark="other")
    assert sentences(tmp_path, "other") == ["There are no runs of naive, with which strategies are compared."]


def test_summary_where_naive_loses_nothing(tmp_path):
    for seed, end in enumerate((0.9, 0.8, 0.85)):
        write_run(tmp_path, "naive", seed, end=end)
        write_run(tmp_path, "fresh", seed, end=0.85)
        write_run(tmp_path, "fresh", seed, end=end - 0.2, benchmark="reverse")
        write_run(tmp_path, "naive", seed, end=end, benchmark="reverse")
        write_run(tmp_path, "redo", seed, end=end + 0.05, benchmark="reverse")
    assert re.match(
        r"No loss of plasticity is shown: on the last 2 .* cannot be told apart with 3 seeds", sentences(tmp_path)[0]
    )
    said = sentences(tmp_path, "reverse")
    assert re.match(
        r"naive loses no plasticity: it learns the last 2 of 6 .* points \[.*\] better than fresh\.$", said[0]
    )
    assert re.match(r"redo learns the last 2 of 6 experiences \d\.\d points \[.*\] better than naive", said[1])
    assert not any("recover" in sentence for sentence in said)


def test_summary_admits_what_the_seeds_cannot_tell(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "naive", seed, end=0.5)
        write_run(tmp_path, "fresh", seed, end=0.9)
    write_run(tmp_path, "redo", 0, end=0.8)
    said = sentences(tmp_path)
    assert "redo cannot be told apart from naive with 1 seed." in said
    assert "The number of dead units of fresh and redo cannot be told apart from naive’s with 1 to 3 seeds." in said


def test_summary_without_fresh_compares_with_naive(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "naive", seed, end=0.5)
        write_run(tmp_path, "redo", seed, end=0.8)
    said = sentences(tmp_path)
    assert said[0] == "How much plasticity naive loses is not known: that takes fresh on the same seeds."
    assert re.match(r"redo learns the last 2 of 6 experiences \d+\.\d points \[.*\] better than naive", said[1])


def test_summary_of_many_strategies_stays_short(tmp_path):
    for seed in range(2):
        for index in range(28):
            write_run(tmp_path, f"method-{index}", seed, end=0.4 + index / 60, dead=index / 40)
        write_run(tmp_path, "naive", seed, end=0.5)
        write_run(tmp_path, "fresh", seed, end=0.9)
    said = sentences(tmp_path)
    assert max(len(sentence) for sentence in said) < 80 * (NAMED + 2)
    assert any(re.search(r" and \d+ more", sentence) for sentence in said)


def test_page_needs_nothing_else(page):
    elements = Elements(page)
    assert not elements.all("link") and not elements.all("img") and not elements.all("iframe")
    for attributes in (attributes for _, attributes in elements.found):
        assert not {"src", "srcset", "background", "action", "formaction"} & set(attributes)
        assert attributes.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style


def test_page_forbids_every_script_but_its_own(page):
    elements = Elements(page)
    policy = next(meta["content"] for meta in elements.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'") and "unsafe-eval" not in policy and "connect-src" not in policy
    allowed = re.search(r"script-src ([^;]*)", policy).group(1).split()
    found = [
        "'sha256-" + base64.b64encode(hashlib.sha256("".join(text).encode()).digest()).decode() + "'"
        for attributes, text in elements.scripts
        if not attributes
    ]
    assert allowed == found and len(found) == 2


def test_page_has_the_numbers_and_the_settings(results, page):
    elements = Elements(page)
    text = " ".join(" ".join(elements.text).split())
    for row in json.loads(compare(results, "json")):
        assert row["strategy"] in text
        for measure in MEASURES:
            mean = row[measure]["mean"]
            if mean is not None and measure != "seconds":
                assert f"{mean:.{WORDING[measure].digits}f}".replace("-", "−") in text
    for measure in WORDING.values():
        assert measure.label in text and measure.definition in text
    for sentence in sentences(results):
        assert sentence in text
    for fact in ("learning_rate 0.005", "optimizer Adam", "torch differs between runs; see below"):
        assert fact in text
    runs = text[text.rindex("All 2 runs, one by one") :]
    assert "2.9.0" in runs and "3.0" in runs and "not recorded" in runs


def test_page_says_how_far_strategies_are_from_naive(results, page):
    table = page[page.index('id="differences-1"') :]
    table = table[: table.index("</table>")].replace("<wbr>", "")  # where a long name may be broken
    measures = re.findall(r'title="[^"]*">([^<]*)</th>', table)

    def cells(strategy):
        row = table[table.index(f"{strategy}</th>") :]
        return re.findall(r'<td data-value="([^"]*)" class="(\w*)[^"]*">([^<\n]*)', row)[: len(measures)]

    late = measures.index("late learning accuracy")
    value, kind, text = cells("synaptic-stripping")[late]
    runs = read_runs(results)["permuted-digits"]
    pairs = zip(runs["synaptic-stripping"], runs["naive"], strict=True)
    slow = [one.measures["late_learning_accuracy"] - other.measures["late_learning_accuracy"] for one, other in pairs]
    assert float(value) == pytest.approx(sum(slow) / 3) and kind == "apart" and text == f"+{sum(slow) / 3:.3f}"
    assert cells("replay+hyper-hypo")[late][1] == "same"
    assert cells("fresh")[measures.index("forgetting")] == ("", "", "–")


def test_data_of_the_plots_cannot_end_their_script(page):
    data = json.loads(Elements(page).script({"type": "application/json", "id": "data"}))
    assert [section["name"] for section in data["sections"]] == ["permuted-digits", "split-cifar10"]
    assert data["sections"][1]["strategies"] == ["naive", ODD]
    assert "<b>" not in page and "&lt;b&gt;bold &amp; $x$" in page


def test_page_is_the_same_for_the_same_runs(results, page):
    assert compare(results, "html") == page


@pytest.mark.parametrize(("experiences", "layers"), [(1, ("layer",)), (2, ()), (90, tuple("abcdefghijklmnopqrst"))])
@pytest.mark.filterwarnings("error")
def test_short_long_shallow_and_deep_runs_have_a_page(tmp_path, experiences, layers):
    write_benchmark(tmp_path, seeds=2, experiences=experiences, layers=layers)
    page = compare(tmp_path, "html")
    assert f"{experiences} experience" in page
    assert ("running mean over 5 points" in page) == (experiences == 90)


def test_plots_begin_with_the_references_and_what_learns_best(tmp_path):
    for index in range(9):
        write_run(tmp_path, f"method-{index}", end=0.5 + 0.04 * ((index * 5) % 9))
    write_run(tmp_path, "naive", end=0.4)
    write_run(tmp_path, "fresh", end=0.3)
    shown = first_shown(read_runs(tmp_path)["permuted-digits"])
    assert len(shown) == FIRST_SHOWN
    assert shown == ["naive", "fresh", "method-1", "method-3", "method-5", "method-7"]


def test_a_page_stays_small(results, page):
    assert len(page) < 1_300_000
    data = Elements(page).script({"type": "application/json", "id": "data"})
    assert len(data) < 40_000
