"""Images in files, one folder a class, as torchvision's `ImageFolder` has them: decoded when they are asked for."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from plasticity.errors import UserError

FOLDER = "tiny-imagenet-200"
SUFFIXES = (".jpeg", ".jpg", ".png")
EXPECTED = f"{FOLDER}/train/CLASS/images/*.JPEG and {FOLDER}/val/images/*.JPEG with {FOLDER}/val/val_annotations.txt"


class ImageFiles:
    """The pixels of image files, each decoded when it is first asked for and kept from then on.

    Args:
        paths: The files.
        shape: Channels, height and width that every image must have.
    """

    def __init__(self, paths: Sequence[Path], shape: tuple[int, int, int] = (3, 64, 64)):
        self.paths = paths
        self._pixels = torch.empty((len(paths), *shape), dtype=torch.uint8)  # takes no memory until it is written to
        self._decoded = torch.zeros(len(paths), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return the images of some rows, uint8, (rows, channels, height, width).

        Raises:
            UserError: If a file cannot be read as an image of the right size.
        """
        for row in rows[~self._decoded[rows]].unique().tolist():
            self._pixels[row] = self._decode(self.paths[row])
            self._decoded[row] = True
        return self._pixels[rows]

    def _decode(self, path: Path) -> Tensor:
        from PIL import Image, UnidentifiedImageError
        from torchvision.transforms.functional import pil_to_tensor

        try:
            with Image.open(path) as image:
                pixels: Tensor = pil_to_tensor(image.convert("RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error
        if pixels.shape != self._pixels.shape[1:]:
            raise UserError(f"{path} has {pixels.shape[2]}x{pixels.shape[1]} pixels, and 64x64 are expected")
        return pixels


def tiny_imagenet(root: Path) -> tuple[ImageFiles, Tensor, ImageFiles, Tensor]:
    """Find the training and validation images of Tiny ImageNet; the labels of its test images are not public.

    Validation images may lie in one folder with a list of their classes, as they come, or sorted into one folder a
    class, as torchvision's `ImageFolder` needs them.

    Args:
        root: Where the folder tiny-imagenet-200 is.

    Returns:
        Training images and labels, validation images and labels; classes are numbered in the order of their names.

    Raises:
        UserError: If a folder, a list or every image of a class is missing; says which.
    """
    folder = root / FOLDER
    if not folder.is_dir():
        raise UserError(
            f"tiny-imagenet: there is no folder {folder}, and it is not downloaded: unpack tiny-imagenet-200.zip, so "
            f"that there are {EXPECTED}, or name another folder by --data DIR"
        )
    train = _by_class(folder / "train")
    listed = folder / "val" / "val_annotations.txt"
    val = _by_list(listed) if listed.is_file() else _by_class(folder / "val")
    if sorted(train) != sorted(val):
        odd = sorted(set(train) ^ set(val))[0]
        raise UserError(f"tiny-imagenet: class {odd} is in only one of {folder / 'train'} and {folder / 'val'}")
    return (*_numbered(train), *_numbered(val))


def _numbered(by_class: dict[str, list[Path]]) -> tuple[ImageFiles, Tensor]:
    files = [by_class[name] for name in sorted(by_class)]
    labels = torch.arange(len(files)).repeat_interleave(torch.tensor([len(paths) for paths in files]))
    return ImageFiles([path for paths in files for path in paths]), labels


def _by_class(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise UserError(f"tiny-imagenet: {folder} is missing: expected are {EXPECTED}")
    found = {}
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir():
            continue
        inner = entry / "images"
        found[entry.name] = _images(inner if inner.is_dir() else entry)
    if not found:
        raise UserError(f"tiny-imagenet: {folder} holds no folders of classes: expected are {EXPECTED}")
    return found


def _by_list(path: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        columns = line.split("\t")
        if len(columns) < 2:
            raise UserError(f"{path}, line {number}: expected are a file's name, a tab and its class")
        image = path.parent / "images" / columns[0]
        if not image.is_file():
            raise UserError(f"tiny-imagenet: {image} is missing, and {path} names it")
        found.setdefault(columns[1], []).append(image)
    return {name: sorted(images) for name, images in found.items()}


def _images(folder: Path) -> list[Path]:
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not images:
        raise UserError(f"tiny-imagenet: {folder} holds no images")
    return images
