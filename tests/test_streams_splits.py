"""Streams of classes: alternating between hard and easy, and with all data kept."""

from collections import Counter

import pytest
from stream_cases import CLASSES, EACH, built, columns, same, small_data, use_small_data

from benchmarks.data import as_inputs


@pytest.fixture(autouse=True)
def _small_data(monkeypatch):
    use_small_data(monkeypatch)


def originals(inputs, dataset="cifar100"):
    """The classes that the first pixels tell."""
    return [round(float(value)) for value in inputs[:, 0, 0, 0] * 0.2673 * 255 + 0.5071 * 255]


@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
@pytest.mark.parametrize("name", ["cifar100-5+1", "l2-init-5+1-cifar"])
def test_hard_and_easy_experiences_alternate(name, scenario):
    stream, _ = built(name, scenario=scenario, experiences=6)
    seen, first = [], 0
    stored = as_inputs("cifar100", small_data("cifar100").train_x)
    for index, ((inputs, labels, tasks), (test_x, test_y, _)) in enumerate(
        zip(columns(stream.train_stream), columns(stream.test_stream), strict=True)
    ):
        classes, times = (5, 1) if index % 2 == 0 else (1, 5)
        start = first if scenario == "class" else 0
        assert sorted(set(labels.tolist())) == sorted(set(test_y.tolist())) == list(range(start, start + classes))
        assert set(tasks.tolist()) == {index if scenario == "task" else 0}
        # Every training image of these classes is there, equally often, so that all experiences are equally long.
        counts = Counter(tuple(row) for row in inputs.flatten(1).tolist())
        assert set(counts.values()) == {times} and len(counts) == classes * EACH
        assert len(labels) == 5 * EACH and len(test_y) == classes
        assert all(
            tuple(row) in counts
            for row in stored[[c in originals(inputs) for c in range(100)] * EACH].flatten(1).tolist()
        )
        # A label stands for one class, the same one in training and test.
        pairs = set(zip(labels.tolist(), originals(inputs), strict=True))
        assert len(pairs) == classes and pairs == set(zip(test_y.tolist(), originals(test_x), strict=True))
        seen += {original for _, original in pairs}
        first += classes
    assert len(seen) == len(set(seen)) == 18


def test_alternating_uses_as_many_classes_as_there_are_and_begins_alike():
    longest, _ = built("cifar100-5+1", experiences=32)
    short, _ = built("cifar100-5+1", experiences=3)
    assert same(list(longest.train_stream)[:3], short.train_stream)
    assert longest.train_stream[31].classes_seen_so_far == list(range(96))


def test_incremental_keeps_all_earlier_data():
    stream, settings = built("cifar100-incremental", experiences=20)
    assert settings.scenario == "class"
    before, before_test = set(), set()
    for index, ((inputs, labels, tasks), (test_x, test_y, _)) in enumerate(
        zip(columns(stream.train_stream), columns(stream.test_stream), strict=True)
    ):
        classes = 5 * (index + 1)
        assert labels.bincount().tolist() == [EACH] * classes and test_y.bincount().tolist() == [1] * classes
        assert not tasks.any()
        rows = set(zip(map(tuple, inputs.flatten(1).tolist()), labels.tolist(), strict=True))
        test = set(zip(originals(test_x), test_y.tolist(), strict=True))
        assert len(rows) == len(labels) and before < rows and before_test < test
        assert set(zip(originals(inputs), labels.tolist(), strict=True)) == test
        before, before_test = rows, test
        assert stream.train_stream[index].previous_classes == list(range(classes - 5))
    assert {original for original, _ in before_test} == set(range(CLASSES["cifar100"]))
