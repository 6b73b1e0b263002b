"""Images of torchvision's data sets and transformations: as tensors they must be what PIL makes of them."""

from functools import partial

import numpy as np
import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.datasets.external_datasets.mnist import TensorMNIST
from avalanche.benchmarks.utils.classification_dataset import lookup
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin, SupervisedPlugin
from avalanche.training.supervised import Naive
from torch import nn
from torch.utils.data import default_collate
from torchvision import datasets, transforms
from torchvision.transforms import functional

from plasticity.loading import NotTensorsError, TensorLoaderPlugin, dataset_rows, dataset_tensors
from plasticity.loading.augmentation import Cropped, Mirrored, Normalised, Scaled, border
from plasticity.loading.loader import TensorLoader
from plasticity.loading.rows import Rows, joined

NORMALISE = transforms.Normalize((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
PLAIN = transforms.Compose([transforms.ToTensor(), NORMALISE])
AUGMENTED = transforms.Compose(
    [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor(), NORMALISE]
)


def stored(kind, count=12, transform=None, target_transform=None, seed=0):
    """A data set of torchvision's with random images, without any file."""
    generator = np.random.default_rng(seed)
    data = kind.__new__(kind)
    data.transform, data.target_transform, data.train = transform, target_transform, True
    labels = (np.arange(count) % 4).tolist()
    if issubclass(kind, datasets.MNIST):
        data.data = torch.from_numpy(generator.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        data.targets = torch.tensor(labels)
    else:
        data.data, data.targets = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), labels
    return data


def collated(data):
    return default_collate([data[index] for index in range(len(data))])


ONE = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
EXACT = {
    "cifar10": stored(datasets.CIFAR10, transform=PLAIN),
    "cifar100": stored(datasets.CIFAR100, transform=transforms.ToTensor()),
    "mnist": stored(datasets.MNIST, transform=ONE),
    "fashion, renumbered": stored(datasets.FashionMNIST, 12, ONE, partial(lookup, [3, 1, 0, 7])),
    "avalanche's mnist": stored(TensorMNIST, transform=transforms.Normalize(0.1307, 0.3081)),
    "no transformation": stored(TensorMNIST),
}


@pytest.mark.parametrize("name", EXACT)
def test_tensors_are_what_pil_and_collating_give(name):
    expected, found = collated(EXACT[name]), dataset_tensors(EXACT[name])
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    chosen = dataset_rows(torch.utils.data.Subset(EXACT[name], [7, 2, 2]))
    for rows in (chosen, chosen.settled(), chosen.settled(room=0)):
        assert all(torch.equal(a, b[[7, 2, 2]]) for a, b in zip(rows.samples(), expected, strict=True))


def test_inputs_are_made_at_once_where_there_is_room():
    rows = dataset_rows(EXACT["cifar10"])
    size = 12 * 3 * 32 * 32
    assert rows.columns[0].dtype == torch.uint8 and len(rows.steps) == 2
    assert rows.settled(room=4 * size).steps == () and rows.settled(room=4 * size - 1) is rows
    random = dataset_rows(stored(datasets.CIFAR10, transform=AUGMENTED))
    assert [step.random for step in random.steps] == [True, True, False, False] and random.settled() is random
    late = transforms.Compose([transforms.ToTensor(), NORMALISE, transforms.RandomVerticalFlip(0.3)])
    rows = dataset_rows(stored(datasets.CIFAR10, transform=late)).settled()
    assert rows.steps == (Mirrored(0.3, -2),) and torch.equal(rows.columns[0], collated(EXACT["cifar10"])[0])


@pytest.mark.parametrize(
    ("kind", "transform", "says"),
    [
        (datasets.CIFAR10, None, "no transformation turns"),
        (datasets.CIFAR10, transforms.RandomHorizontalFlip(), "no transformation turns"),
        (datasets.CIFAR10, NORMALISE, "Normalize"),
        (datasets.CIFAR10, transforms.Compose([transforms.ToTensor(), transforms.RandomRotation(5)]), "RandomRotation"),
        (datasets.CIFAR10, transforms.RandomCrop(32, 4, fill=3), "RandomCrop"),
        (datasets.CIFAR10, transforms.RandomCrop(32, 4, padding_mode="reflect"), "RandomCrop"),
        (datasets.CIFAR10, transforms.RandomCrop(40, pad_if_needed=True), "RandomCrop"),
        (datasets.CIFAR10, transforms.Compose([PLAIN, transforms.ToTensor()]), "ToTensor"),
        (TensorMNIST, transforms.Normalize((0.1,), (0.0,)), "divides by 0"),
        (TensorMNIST, torch.flatten, "flatten"),
    ],
)
def test_what_is_not_understood_is_named(kind, transform, says):
    with pytest.raises(NotTensorsError, match=says):
        dataset_rows(stored(kind, transform=transform))


def test_further_reasons():
    with pytest.raises(NotTensorsError, match="labels pass through str"):
        dataset_rows(stored(datasets.CIFAR10, transform=PLAIN, target_transform=str))
    with pytest.raises(NotTensorsError, match="random transformations"):
        dataset_tensors(stored(datasets.CIFAR10, transform=AUGMENTED))
    read = stored(datasets.CIFAR10, transform=PLAIN)
    read.ffcv_info = ()
    with pytest.raises(NotTensorsError, match="FFCV"):
        dataset_rows(read)

    class Other(datasets.CIFAR10):
        def __getitem__(self, index):
            return super().__getitem__(0)

    with pytest.raises(NotTensorsError, match="Other"):
        dataset_rows(stored(Other, transform=PLAIN))
    with pytest.raises(TypeError, match="floating-point"):
        Normalised((0.0,), (1.0,))(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))


def test_crops_are_torchvisions_at_places_drawn_evenly_and_apart():
    torch.manual_seed(0)
    image = torch.arange(1, 3 * 6 * 5 + 1, dtype=torch.uint8).view(3, 6, 5)
    step = Cropped((4, 5), border((1, 2)))  # left and right, top and bottom
    padded = functional.pad(image, (1, 2))
    assert padded.shape[1:] == (10, 7)
    known = {
        functional.crop(padded, top, left, 4, 5).numpy().tobytes(): (top, left) for top in range(7) for left in range(3)
    }
    assert len(known) == 21
    found = [known[crop.numpy().tobytes()] for crop in step(image.expand(8000, 3, 6, 5))]
    counts = torch.zeros(7, 3)
    for place in found:
        counts[place] += 1
    expected = 8000 / 21
    assert float(((counts - expected) ** 2 / expected).sum()) < 45.3  # chi-squared with 20 degrees, 0.1%
    whole = Cropped((6, 5))(image.expand(3, 3, 6, 5))
    assert torch.equal(whole, image.expand(3, 3, 6, 5)) and step(image[None]).is_contiguous()


@pytest.mark.parametrize("dimension", [-1, -2])
def test_mirror_images_come_as_often_as_asked_each_by_itself(dimension):
    torch.manual_seed(0)
    images = torch.rand(4000, 2, 3, 4)
    found = Mirrored(0.3, dimension)(images)
    other = functional.hflip(images) if dimension == -1 else functional.vflip(images)
    mirrored = (found == other).flatten(1).all(1)
    assert torch.equal(mirrored, ~(found == images).flatten(1).all(1))
    assert abs(int(mirrored.sum()) - 1200) < 3.3 * (4000 * 0.3 * 0.7) ** 0.5
    pairs = (mirrored[1:] & mirrored[:-1]).float().mean()
    assert abs(float(pairs) - 0.09) < 0.02


def test_paddings_are_read_as_torchvision_reads_them():
    image = torch.rand(1, 1, 4, 4)
    for padding in (None, 2, (2,), (1, 2), [1, 2, 3, 0]):
        left, top, right, bottom = border(padding)
        expected = image if padding is None else functional.pad(image, list(padding) if padding != 2 else 2)
        assert torch.equal(torch.nn.functional.pad(image, (left, right, top, bottom)), expected)


def test_nothing_asks_the_device():
    images = torch.empty((8, 3, 32, 32), dtype=torch.uint8, device="meta")
    rows = Rows((images, torch.empty(8, dtype=torch.int64, device="meta")), dataset_rows(_augmented()).steps)
    inputs, labels = rows.samples(torch.empty(4, dtype=torch.int64, device="meta"))
    assert inputs.shape == (4, 3, 32, 32) and inputs.dtype == torch.float32 and labels.shape == (4,)


def _augmented(count=12, seed=0):
    return stored(datasets.CIFAR10, count, AUGMENTED, seed=seed)


def test_joined_samples():
    one, other = dataset_rows(EXACT["cifar10"]), dataset_rows(EXACT["cifar100"])
    both = joined([one, one])
    assert both.columns[0].dtype == torch.uint8 and len(both) == 24  # the same steps: they stay to be taken
    mixed = joined([one, other]).samples()[0]
    assert torch.equal(mixed, torch.cat([collated(EXACT["cifar10"])[0], collated(EXACT["cifar100"])[0]]))
    with pytest.raises(NotTensorsError, match="different random"):
        joined([one, dataset_rows(_augmented())])
    with pytest.raises(NotTensorsError, match="some samples are images"):
        joined([one, Rows(one.columns, pictures=True)])
    with pytest.raises(NotTensorsError, match="differ in shape"):
        joined([one, dataset_rows(EXACT["mnist"])])


class Seen(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.batches, self.loaders = [], set()

    def before_training_iteration(self, strategy, **kwargs):
        self.batches.append([column.clone() for column in strategy.mbatch])
        self.loaders.add(type(strategy.dataloader))


def trained(transform, plugins, data=None):
    """Train as one does with torchvision's data and Avalanche's benchmarks; returns what was seen, and the weights."""
    benchmark = nc_benchmark(
        stored(datasets.CIFAR10, 40) if data is None else data,
        stored(datasets.CIFAR10, 8, seed=1),
        n_experiences=2,
        task_labels=False,
        seed=0,
        class_ids_from_zero_in_each_exp=True,
        train_transform=transform,
        eval_transform=PLAIN,
    )
    torch.manual_seed(3)
    model, seen = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4)), Seen()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        train_epochs=2,
        plugins=[ReplayPlugin(mem_size=6), *plugins, seen],
        evaluator=EvaluationPlugin(),
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
    return seen, model.state_dict()


@pytest.mark.parametrize("room", [2**28, 0])
def test_training_on_pictures_is_bit_identical(room):
    quick, slow = trained(PLAIN, [TensorLoaderPlugin(room=room)]), trained(PLAIN, [])
    assert quick[0].loaders == {TensorLoader} and len(quick[0].batches) == len(slow[0].batches) == 12
    for mine, theirs in zip(quick[0].batches, slow[0].batches, strict=True):
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert all(torch.equal(quick[1][name], value) for name, value in slow[1].items())


def test_augmented_training_shows_every_sample_once_an_epoch_each_time_another_way():
    data = stored(datasets.CIFAR10, 40)
    data.data[:] = 6 * np.arange(1, 41, dtype=np.uint8).reshape(-1, 1, 1, 1)  # each image has a grey of its own
    seen, _ = trained(AUGMENTED, [TensorLoaderPlugin()], data)
    assert seen.loaders == {TensorLoader}
    std, mean = (torch.tensor(values).view(3, 1, 1) for values in (NORMALISE.std, NORMALISE.mean))
    orders, borders = [], []
    for start in (0, 3):
        inputs, labels, _ = (torch.cat(column) for column in zip(*seen.batches[start : start + 3], strict=True))
        pixels = ((inputs * std + mean) * 255).round().int()
        numbers = pixels[:, 0, 16, 16] // 6 - 1  # the middle is never black
        classes = numbers % 4  # two of four, renumbered
        assert len({(int(a), int(b)) for a, b in zip(classes, labels, strict=True)}) == len(set(labels.tolist())) == 2
        assert len(set(numbers.tolist())) == len(numbers) == 20
        assert ((pixels == pixels[:, :, 16:17, 16:17]) | (pixels == 0)).all()
        orders.append(numbers.tolist())
        borders.append({number: int((image == 0).sum()) for number, image in zip(orders[-1], pixels, strict=True)})
    assert orders[0] != orders[1] and borders[0] != borders[1] and len(set(borders[0].values())) > 5


def test_scaling_is_a_division_on_every_device():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    expected = torch.tensor([number / 255 for number in range(256)], dtype=torch.float64).float().view(1, 1, 16, 16)
    assert torch.equal(Scaled(torch.float32)(pixels), expected)
