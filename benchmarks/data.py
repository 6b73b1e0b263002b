"""Image data: digits, MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100 and Tiny ImageNet.

`digits` comes with scikit-learn. The others are looked for in `--data DIR`, else in the folder named by the environment
variable PLASTICITY_DATA, else in `~/.cache/avalanche-plasticity`; what is not there is downloaded into that folder
where there is a network. In the folder may lie, each file checked against its published md5 before it is read:

    cifar-100-python/   cifar-10-batches-py/    torchvision's own layout
    cifar-100-binary/   cifar-10-batches-bin/   the official "binary version"
    MNIST/raw/          FashionMNIST/raw/       torchvision's own layout; the idx files may be packed (.gz)

Tiny ImageNet is never downloaded: `benchmarks.image_files` says what is to lie in tiny-imagenet-200/.
"""

import contextlib
import functools
import gzip
import hashlib
import io
import os
import socket
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.image_files import ImageFiles, tiny_imagenet
from plasticity.errors import UserError
from plasticity.loading.augmentation import constant

ENVIRONMENT_VARIABLE = "PLASTICITY_DATA"
CACHE = Path("~/.cache/avalanche-plasticity")
DOWNLOAD_TIMEOUT = 60.0  # seconds without an answer


class ImageData(NamedTuple):
    """A data set as it is stored: shared between callers, so not to be written to.

    Pixels are uint8, (samples, channels, height, width), except those of digits: (samples, 64), from 0 to 16; those of
    Tiny ImageNet are decoded as they are indexed. Labels are int64, (samples,), from 0 to classes - 1.
    """

    train_x: Tensor | ImageFiles
    train_y: Tensor
    test_x: Tensor | ImageFiles
    test_y: Tensor


@dataclass(frozen=True)
class _Layout:
    folder: str
    train: dict[str, str]  # file name -> md5
    test: dict[str, str]


@dataclass(frozen=True)
class _Source:
    torchvision: str  # name of the class in torchvision.datasets
    folder: str  # what torchvision's download leaves in its root
    raw: _Layout  # read here, by numpy
    label_bytes: int  # CIFAR: bytes before the pixels of a row; 0: the idx format
    mean: tuple[float, ...]  # per channel, over the training images scaled to [0, 1]
    std: tuple[float, ...]


SOURCES: dict[str, _Source] = {
    "mnist": _Source(
        torchvision="MNIST",
        folder="MNIST",
        raw=_Layout(
            "MNIST/raw",
            {
                "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
                "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
            },
            {
                "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
                "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
            },
        ),
        label_bytes=0,
        mean=(0.1307,),
        std=(0.3081,),
    ),
    "fashion": _Source(
        torchvision="FashionMNIST",
        folder="FashionMNIST",
        raw=_Layout(
            "FashionMNIST/raw",
            {
                "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
                "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
            },
            {
                "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
                "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
            },
        ),
        label_bytes=0,
        mean=(0.2860,),
        std=(0.3530,),
    ),
    "cifar10": _Source(
        torchvision="CIFAR10",
        folder="cifar-10-batches-py",
        raw=_Layout(
            "cifar-10-batches-bin",
            {
                "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
                "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
                "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
                "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
                "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
            },
            {"test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d"},
        ),
        label_bytes=1,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": _Source(
        torchvision="CIFAR100",
        folder="cifar-100-python",
        raw=_Layout(
            "cifar-100-binary",
            {"train.bin": "6172c7755cfe09b2fe270c85cebc1b15"},
            {"test.bin": "4499cfba6c016c1be1438163640a0898"},
        ),
        label_bytes=2,  # the coarse label, then the fine one
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
}
TINY_IMAGENET = "tiny-imagenet"
TINY_IMAGENET_MEAN_STD = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)  # per channel, as in `_Source`
NAMES = ("digits", *SOURCES, TINY_IMAGENET)


def load(name: str, directory: Path | str | None = None) -> ImageData:
    """Read a data set, downloading it where it is missing.

    Args:
        name: One of `NAMES`.
        directory: Where to look for the files (and to put them); None: see the module's description.

    Returns:
        The training and test images and labels, as stored.

    Raises:
        UserError: If the name is unknown, or a file is missing and cannot be downloaded, corrupt or unreadable.
    """
    if name == "digits":
        return _digits()
    if name == TINY_IMAGENET:
        return _tiny_imagenet(data_directory(directory).absolute())
    if name not in SOURCES:
        raise UserError(f"unknown data set {name!r}: known are {', '.join(NAMES)}")
    return _load(name, data_directory(directory).absolute())


def data_directory(directory: Path | str | None = None) -> Path:
    """The folder that holds the data: the one given, else PLASTICITY_DATA, else the cache."""
    return Path(directory or os.environ.get(ENVIRONMENT_VARIABLE) or CACHE).expanduser()


def as_inputs(name: str, pixels: Tensor) -> Tensor:
    """Turn stored pixels into what the networks see.

    Args:
        name: The data set that the pixels come from.
        pixels: uint8, as in `ImageData`.

    Returns:
        float32 of the same shape. Digits: scaled to [0, 1]. The others: scaled to [0, 1], then normalised by the mean
        and standard deviation of each channel over the training images.
    """
    if name == "digits":
        return pixels.float() / 16
    mean, std = TINY_IMAGENET_MEAN_STD if name == TINY_IMAGENET else (SOURCES[name].mean, SOURCES[name].std)
    shape = (-1, 1, 1)
    device = pixels.device
    # By a tensor on the device: by a Python number, a GPU multiplies by the reciprocal, and rounds otherwise.
    inputs = pixels.float().div_(constant(255.0, torch.float32, device))
    return inputs.sub_(constant(mean, torch.float32, device).view(shape)).div_(
        constant(std, torch.float32, device).view(shape)
    )


@functools.cache
def _digits() -> ImageData:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    # The split belongs to the data set, not to a run: its seed is fixed.
    train_x, test_x, train_y, test_y = train_test_split(pixels, labels, test_size=360, stratify=labels, random_state=0)
    return ImageData(
        torch.from_numpy(train_x.astype(np.uint8)),
        torch.from_numpy(train_y.astype(np.int64)),
        torch.from_numpy(test_x.astype(np.uint8)),
        torch.from_numpy(test_y.astype(np.int64)),
    )


@functools.lru_cache(maxsize=1)
def _tiny_imagenet(root: Path) -> ImageData:
    return ImageData(*tiny_imagenet(root))


@functools.lru_cache(maxsize=2)
def _load(name: str, root: Path) -> ImageData:
    source = SOURCES[name]
    try:
        if not any((root / folder).is_dir() for folder in (source.folder, source.raw.folder)):
            _download(name, root)
        if source.label_bytes and (root / source.folder).is_dir():
            return _read_pickles(name, root)
        files = source.raw
        train, test = (_read_raw(name, root / files.folder, part) for part in (files.train, files.test))
    except OSError as error:
        raise UserError(f"{name}: cannot read {error.filename or root}: {error.strerror or error}") from error
    return ImageData(*train, *test)


def _checked(name: str, path: Path, md5: str, packed: bool = False) -> bytes:
    """Read a file and compare its md5; where `packed`, it may have been compressed, and its name then ends in .gz."""
    archive = path.with_name(f"{path.name}.gz")
    try:
        if packed and not path.is_file() and archive.is_file():
            content = gzip.decompress(archive.read_bytes())
        elif path.is_file():
            content = path.read_bytes()
        else:
            raise UserError(f"{name}: {path} is missing")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{name}: {archive} is corrupt: {error}") from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise UserError(f"{name}: {path} is corrupt: its md5 is {found}, expected {md5}")
    return content


def _read_raw(name: str, folder: Path, files: dict[str, str]) -> tuple[Tensor, Tensor]:
    label_bytes = SOURCES[name].label_bytes
    contents = [_checked(name, folder / file, md5, packed=not label_bytes) for file, md5 in files.items()]
    if label_bytes:
        rows = np.frombuffer(b"".join(contents), np.uint8).reshape(-1, label_bytes + 3 * 32 * 32)
        pixels, labels = rows[:, label_bytes:].reshape(-1, 3, 32, 32), rows[:, label_bytes - 1]
    else:  # the idx format: a header of 16 bytes before images, of 8 before labels
        pixels = np.frombuffer(contents[0], np.uint8, offset=16).reshape(-1, 1, 28, 28)
        labels = np.frombuffer(contents[1], np.uint8, offset=8)
    return torch.from_numpy(pixels.copy()), torch.from_numpy(labels.astype(np.int64))


def _read_pickles(name: str, root: Path) -> ImageData:
    from torchvision import datasets

    kind: Any = getattr(datasets, SOURCES[name].torchvision)
    # Checked here first, because torchvision does not say which file is at fault.
    for file, md5 in [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]:
        _checked(name, root / kind.base_folder / file, md5)
    tensors = []
    for train in (True, False):
        stored = kind(root, train=train, download=False)
        tensors += [torch.from_numpy(stored.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(stored.targets)]
    return ImageData(*tensors)


def _download(name: str, root: Path) -> None:
    from torchvision import datasets

    source = SOURCES[name]
    previous, made = socket.getdefaulttimeout(), not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        # In a folder of its own, renamed at the end: an interrupted download leaves nothing that looks complete.
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as temporary:
            socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
            with contextlib.redirect_stdout(io.StringIO()):
                getattr(datasets, source.torchvision)(temporary, download=True)
            try:
                (Path(temporary) / source.folder).rename(root / source.folder)
            except OSError:
                if not (root / source.folder).is_dir():  # else another process was first
                    raise
    except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
        if made:
            with contextlib.suppress(OSError):
                root.rmdir()
        layouts = [f"{source.raw.folder}/{{{', '.join([*source.raw.train, *source.raw.test])}}}"]
        if source.label_bytes:
            layouts.insert(0, f"{source.folder}/")
        raise UserError(
            f"{name}: not in {root}, and the download failed ({' '.join(str(error).split())}): put "
            f"{' or '.join(layouts)} there, or name another folder by --data DIR or by {ENVIRONMENT_VARIABLE}"
        ) from error
    finally:
        socket.setdefaulttimeout(previous)
