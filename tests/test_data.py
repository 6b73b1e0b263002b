"""Data sets: what is read, from where, and what is said where that fails. Small files stand for the real ones."""

import hashlib
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from benchmarks import data
from plasticity.errors import UserError

RANDOM = np.random.default_rng(0)


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def small(monkeypatch):
    """Writes stand-ins for the raw files of a data set and has their md5 expected; returns what is in them."""

    def write(name, root, samples=7):
        source = data.SOURCES[name]
        folder = root / source.raw.folder
        folder.mkdir(parents=True)
        written, parts = [], []
        for files in (source.raw.train, source.raw.test):
            contents, pixels, labels = {}, [], []
            if source.label_bytes:
                for file in files:
                    image = RANDOM.integers(0, 256, (samples, 3, 32, 32), np.uint8)
                    label = RANDOM.integers(0, 10, (samples, source.label_bytes), np.uint8)
                    contents[file] = np.column_stack([label, image.reshape(samples, -1)]).tobytes()
                    pixels.append(image)
                    labels.append(label[:, -1])
            else:
                image = RANDOM.integers(0, 256, (samples, 1, 28, 28), np.uint8)
                label = RANDOM.integers(0, 10, samples, np.uint8)
                images_file, labels_file = files
                contents[images_file] = np.array([2051, samples, 28, 28], ">i4").tobytes() + image.tobytes()
                contents[labels_file] = np.array([2049, samples], ">i4").tobytes() + label.tobytes()
                pixels.append(image)
                labels.append(label)
            for file, content in contents.items():
                (folder / file).write_bytes(content)
            parts.append({file: hashlib.md5(content).hexdigest() for file, content in contents.items()})
            written += [np.concatenate(pixels), np.concatenate(labels)]
        raw = replace(source.raw, train=parts[0], test=parts[1])
        monkeypatch.setitem(data.SOURCES, name, replace(source, raw=raw))
        return written

    return write


@pytest.fixture
def no_network(monkeypatch):
    """Every download fails, and at once."""

    def fail(*args, **kwargs):
        raise OSError("no network\nhere")

    for source in data.SOURCES.values():
        monkeypatch.setattr(torchvision.datasets, source.torchvision, fail)


def test_digits_have_a_fixed_stratified_split():
    train_x, train_y, test_x, test_y = data.load("digits")
    assert train_x.shape == (1437, 64) and test_x.shape == (360, 64)
    assert train_x.dtype == test_x.dtype == torch.uint8 and train_y.dtype == torch.int64
    assert (train_y.bincount() / 4 - test_y.bincount()).abs().max() < 1.5
    rows = {tuple(row) for row in train_x.tolist()}
    assert not rows & {tuple(row) for row in test_x.tolist()}
    data._digits.cache_clear()
    assert all(torch.equal(a, b) for a, b in zip(data.load("digits"), (train_x, train_y, test_x, test_y), strict=True))
    inputs = data.as_inputs("digits", train_x)
    assert inputs.dtype == torch.float32 and inputs.min() == 0 and inputs.max() == 1


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion"])
def test_raw_files_are_read(name, small, no_network, tmp_path):
    train_x, train_y, test_x, test_y = small(name, tmp_path)
    found = data.load(name, tmp_path)
    assert np.array_equal(found.train_x.numpy(), train_x) and found.train_x.dtype == torch.uint8
    assert np.array_equal(found.test_x.numpy(), test_x)
    assert np.array_equal(found.train_y.numpy(), train_y) and found.train_y.dtype == torch.int64
    assert np.array_equal(found.test_y.numpy(), test_y)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_torchvision_layout_is_read(name, tmp_path, monkeypatch):
    kind = getattr(torchvision.datasets, data.SOURCES[name].torchvision)
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    key = "fine_labels" if name == "cifar100" else "labels"
    rows = {}

    def store(file, content):
        (folder / file).write_bytes(pickle.dumps(content))
        return file, hashlib.md5((folder / file).read_bytes()).hexdigest()

    def batch(file):
        rows[file] = RANDOM.integers(0, 256, (4, 3072), np.uint8), RANDOM.integers(0, 10, 4).tolist()
        return store(file, {"data": rows[file][0], key: rows[file][1]})

    monkeypatch.setattr(kind, "train_list", [batch(file) for file, _ in kind.train_list])
    monkeypatch.setattr(kind, "test_list", [batch(file) for file, _ in kind.test_list])
    meta, md5 = store(kind.meta["filename"], {kind.meta["key"]: list("abcdefghij")})
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5})

    found = data.load(name, tmp_path)
    pixels = np.concatenate([rows[file][0] for file, _ in kind.train_list]).reshape(-1, 3, 32, 32)
    assert np.array_equal(found.train_x.numpy(), pixels)
    assert found.train_y.tolist() == [label for file, _ in kind.train_list for label in rows[file][1]]
    assert found.test_y.tolist() == rows[kind.test_list[0][0]][1]

    data._load.cache_clear()
    file, expected = kind.test_list[0]
    (folder / file).write_bytes(b"not what it was")
    monkeypatch.setattr(pickle, "load", lambda *a, **k: pytest.fail("unpickled before it was checked"))
    with pytest.raises(UserError) as error:
        data.load(name, tmp_path)
    message = one_line(error)
    assert str(folder / file) in message and expected in message
    assert hashlib.md5(b"not what it was").hexdigest() in message


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion"])
def test_every_corrupt_or_missing_file_is_named(name, small, no_network, tmp_path):
    small(name, tmp_path)
    raw = data.SOURCES[name].raw
    for file, md5 in {**raw.train, **raw.test}.items():
        path = tmp_path / raw.folder / file
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(UserError) as error:
            data.load(name, tmp_path)
        message = one_line(error)
        assert str(path) in message and f"expected {md5}" in message
        assert hashlib.md5(path.read_bytes()).hexdigest() in message
        path.unlink()
        with pytest.raises(UserError, match="is missing") as error:
            data.load(name, tmp_path)
        assert str(path) in one_line(error)
        path.write_bytes(content)
    data.load(name, tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion"])
def test_without_data_or_network_it_says_what_to_put_where(name, no_network, tmp_path):
    root = tmp_path / "absent"
    with pytest.raises(UserError) as error:
        data.load(name, root)
    message = one_line(error)
    source = data.SOURCES[name]
    assert str(root) in message and source.raw.folder in message and "--data" in message and "no network" in message
    assert all(file in message for file in source.raw.test)
    assert not root.exists()


def test_a_download_appears_at_once_or_not_at_all(small, tmp_path, monkeypatch, capsys):
    small("mnist", tmp_path / "elsewhere")
    root = tmp_path / "root"
    interrupted = True

    def download(folder, download):
        print("chatter")
        target = Path(folder) / "MNIST/raw"
        target.mkdir(parents=True)
        for path in (tmp_path / "elsewhere/MNIST/raw").iterdir():
            (target / path.name).write_bytes(path.read_bytes())
            if interrupted:
                raise RuntimeError("connection lost")

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    with pytest.raises(UserError, match="connection lost"):
        data.load("mnist", root)
    assert not root.exists()
    interrupted = False
    assert len(data.load("mnist", root).train_x) == 7
    assert [path.name for path in root.iterdir()] == ["MNIST"]
    assert not capsys.readouterr().out


def test_where_data_are_looked_for(monkeypatch, tmp_path):
    monkeypatch.delenv(data.ENVIRONMENT_VARIABLE, raising=False)
    assert data.data_directory() == Path.home() / ".cache/avalanche-plasticity"
    monkeypatch.setenv(data.ENVIRONMENT_VARIABLE, str(tmp_path))
    assert data.data_directory() == tmp_path
    assert data.data_directory("given") == Path("given")


def test_an_unreadable_folder_is_the_users_error(small, no_network, tmp_path):
    small("cifar100", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as error:
        data.load("cifar100", tmp_path / "file" / "folder")
    assert "cifar100" in one_line(error)
    with pytest.raises(UserError, match="digits, mnist, fashion, cifar10, cifar100"):
        data.load("imagenet")


def test_inputs_are_normalised_by_channel():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(12).view(1, 3, 32, 32)
    inputs = data.as_inputs("cifar10", pixels)
    for channel, (mean, std) in enumerate(zip((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), strict=True)):
        expected = (pixels[0, channel].double() / 255 - mean) / std
        torch.testing.assert_close(inputs[0, channel].double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "train", "test", "classes"),
    [
        ("cifar10", 50_000, 10_000, 10),
        ("cifar100", 50_000, 10_000, 100),
        ("mnist", 60_000, 10_000, 10),
        ("fashion", 60_000, 10_000, 10),
    ],
)
def test_real_data(name, train, test, classes):
    root = os.environ.get(data.ENVIRONMENT_VARIABLE)
    source = data.SOURCES[name]
    if not root or not any((Path(root) / folder).is_dir() for folder in (source.folder, source.raw.folder)):
        pytest.skip(f"{data.ENVIRONMENT_VARIABLE} names no folder with {name}")
    found = data.load(name)
    assert len(found.train_x) == len(found.train_y) == train and len(found.test_x) == len(found.test_y) == test
    assert len(found.train_y.unique()) == len(found.test_y.unique()) == classes
    inputs = data.as_inputs(name, found.train_x[:20_000])
    assert inputs.mean().abs() < 0.02 and (inputs.std() - 1).abs() < 0.02
