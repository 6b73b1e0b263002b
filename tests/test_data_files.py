"""Data in files of other kinds: packed idx files, and folders of images as torchvision's `ImageFolder` reads them."""

import gzip
import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from stream_cases import columns
from torchvision.transforms.functional import pil_to_tensor

from benchmarks import data
from benchmarks.data import as_inputs
from benchmarks.image_files import ImageFiles
from benchmarks.streams import StreamSettings, split_stream
from plasticity.errors import UserError

CLASSES = ("n01443537", "n01629819", "n09999999", "n00000001")
RANDOM = np.random.default_rng(0)


def write_image(path, size=64, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size, size, 3) if mode == "RGB" else (size, size)
    Image.fromarray(RANDOM.integers(0, 256, shape, np.uint8), mode).save(path, "JPEG")


def write_train(root, inner="images", each=3):
    for number, name in enumerate(CLASSES):
        for image in range(each):
            write_image(
                root / "tiny-imagenet-200/train" / name / inner / f"{name}_{image}.JPEG",
                mode="L" if (number, image) == (1, 2) else "RGB",
            )
        (root / "tiny-imagenet-200/train" / name / f"{name}_boxes.txt").write_text("not an image")


def write_val(root, layout):
    """Two images of each class, in one of the layouts; returns the class of each by name."""
    folder = root / "tiny-imagenet-200/val"
    names = {f"val_{number}.JPEG": CLASSES[number % 4] for number in (7, 0, 1, 2, 3, 4, 5, 6)}
    for name, label in names.items():
        place = {"listed": folder / "images", "sorted": folder / label, "sorted with images": folder / label / "images"}
        write_image(place[layout] / name)
    if layout == "listed":
        lines = [f"{name}\t{label}\t0\t32\t44\t62\n" for name, label in names.items()]
        (folder / "val_annotations.txt").write_text("".join(lines))
    return names


@pytest.mark.parametrize("inner", ["images", "."])
@pytest.mark.parametrize("layout", ["listed", "sorted", "sorted with images"])
def test_tiny_imagenet_is_what_image_folder_reads(inner, layout, tmp_path):
    write_train(tmp_path, inner)
    names = write_val(tmp_path, layout)
    found = data.load("tiny-imagenet", tmp_path)
    train = torchvision.datasets.ImageFolder(tmp_path / "tiny-imagenet-200/train")
    assert train.classes == sorted(CLASSES)
    assert found.train_y.tolist() == train.targets and found.train_y.dtype == torch.int64
    assert torch.equal(found.train_x[torch.arange(12)], torch.stack([pil_to_tensor(image) for image, _ in train]))
    expected = []
    for label, name in enumerate(sorted(CLASSES)):
        for file in sorted(file for file, of in names.items() if of == name):
            (path,) = (tmp_path / "tiny-imagenet-200/val").rglob(file)
            expected.append((label, pil_to_tensor(Image.open(path))))
    assert found.test_y.tolist() == [label for label, _ in expected]
    assert torch.equal(found.test_x[torch.arange(8)], torch.stack([image for _, image in expected]))
    inputs = as_inputs("tiny-imagenet", found.test_x[torch.tensor([5])])[0]
    for channel, (mean, std) in enumerate(zip((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821), strict=True)):
        values = (expected[5][1][channel].double() / 255 - mean) / std
        torch.testing.assert_close(inputs[channel].double(), values, rtol=0, atol=1e-5)


def test_images_are_decoded_once_and_when_they_are_asked_for(tmp_path, monkeypatch):
    write_train(tmp_path)
    write_val(tmp_path, "listed")
    decoded = []
    decode = ImageFiles._decode
    monkeypatch.setattr(ImageFiles, "_decode", lambda self, path: (decoded.append(path.name), decode(self, path))[1])
    stream = split_stream("tiny-imagenet", StreamSettings(0, 2, "class", tmp_path))
    assert not decoded
    inputs, labels, _ = columns([stream.train_stream[1]])[0]
    assert inputs.shape == (6, 3, 64, 64) and sorted(decoded) == sorted(set(decoded)) and len(decoded) == 6
    assert labels.unique().tolist() == [2, 3]
    assert torch.equal(columns([stream.train_stream[1]])[0][0], inputs) and len(decoded) == 6
    files = data.load("tiny-imagenet", tmp_path).train_x
    rows = torch.tensor([11, 0, 11])
    assert torch.equal(files[rows], torch.stack([files[torch.tensor([row])][0] for row in rows]))


def broken(root, case):
    """Break the files; returns what the message must name."""
    tiny = root / "tiny-imagenet-200"
    if case == "no folder":
        return [
            str(root / "tiny-imagenet-200"),
            "not downloaded",
            "train/CLASS/images",
            "val_annotations.txt",
            "--data",
        ]
    if case == "no train":
        write_val(root, "listed")
        return [str(tiny / "train"), "missing"]
    write_train(root)
    if case == "no val":
        return [str(tiny / "val"), "missing"]
    write_val(root, "listed")
    if case == "no classes in val":
        (tiny / "val/val_annotations.txt").unlink()
        (tiny / "val/images").rename(tiny / "elsewhere")
        return [str(tiny / "val"), "no folders of classes"]
    if case == "an empty class":
        for path in (tiny / "train" / CLASSES[0] / "images").iterdir():
            path.unlink()
        return [str(tiny / "train" / CLASSES[0] / "images"), "no images"]
    if case == "another class in val":
        write_image(tiny / "val/images/more.JPEG")
        with (tiny / "val/val_annotations.txt").open("a") as file:
            file.write("more.JPEG\tn00000002\n")
        return ["n00000002", str(tiny / "train"), str(tiny / "val")]
    if case == "a listed image is missing":
        (tiny / "val/images/val_3.JPEG").unlink()
        return [str(tiny / "val/images/val_3.JPEG"), "val_annotations.txt"]
    if case == "a list of another form":
        (tiny / "val/val_annotations.txt").write_text("val_0.JPEG n01443537\n")
        return ["val_annotations.txt, line 1"]
    path = tiny / "train" / sorted(CLASSES)[0] / "images" / f"{sorted(CLASSES)[0]}_0.JPEG"
    if case == "a small image":
        write_image(path, size=32)
        return [str(path), "32x32", "64x64"]
    path.write_bytes(b"not an image")
    return [str(path), "cannot read"]


@pytest.mark.parametrize(
    "case",
    ["no folder", "no train", "no val", "no classes in val", "an empty class", "another class in val"]
    + ["a listed image is missing", "a list of another form", "a small image", "a broken image"],
)
def test_what_is_missing_is_named(case, tmp_path):
    words = broken(tmp_path, case)
    with pytest.raises(UserError) as error:
        data.load("tiny-imagenet", tmp_path).train_x[torch.arange(12)]
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A small MNIST, packed; returns what is in it."""
    source, folder, parts = data.SOURCES["mnist"], tmp_path / "MNIST/raw", []
    folder.mkdir(parents=True)
    images, labels = RANDOM.integers(0, 256, (5, 28, 28), np.uint8), RANDOM.integers(0, 10, 5, np.uint8)
    for files in (source.raw.train, source.raw.test):
        contents = (bytes(16) + images.tobytes(), bytes(8) + labels.tobytes())
        for name, content in zip(files, contents, strict=True):
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        parts.append({name: hashlib.md5(content).hexdigest() for name, content in zip(files, contents, strict=True)})
    monkeypatch.setitem(data.SOURCES, "mnist", replace(source, raw=replace(source.raw, train=parts[0], test=parts[1])))
    return images, labels


def test_packed_idx_files_are_read(packed, tmp_path):
    found = data.load("mnist", tmp_path)
    assert np.array_equal(found.train_x[:, 0].numpy(), packed[0]) and np.array_equal(found.test_y.numpy(), packed[1])


@pytest.mark.parametrize(
    "content",
    [b"", b"not packed", gzip.compress(b"other"), gzip.compress(bytes(9999))[:-3]],
    ids=["empty", "not packed", "other content", "cut short"],  # packed bytes hold the time, and so would the names
)
def test_corrupt_packed_files_are_named(content, packed, tmp_path):
    path = tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match="corrupt") as error:
        data.load("mnist", tmp_path)
    assert "t10k-labels-idx1-ubyte" in str(error.value) and "\n" not in str(error.value)


def test_the_same_file_unpacked_comes_first(packed, tmp_path):
    path = tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte"
    path.write_bytes(b"")
    with pytest.raises(UserError, match="its md5 is"):
        data.load("mnist", tmp_path)
