"""Mini-batches straight from tensors, and quick evaluation.

Avalanche fetches every sample through Python, which for small networks takes longer than training them. Add one plugin
to a strategy and its loaders are left to say *which* samples come in each mini-batch, while the samples themselves are
indexed, a mini-batch at a time, out of tensors that lie on the strategy's device:

    strategy = Naive(..., plugins=[TensorLoaderPlugin()])

Mini-batches and random numbers are those of Avalanche's own loader, also under replay or with balanced tasks.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader
from avalanche.models import avalanche_forward
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from benchmarks.tensors import NotTensorsError, dataset_tensors


class _Rows(Dataset[list[Tensor]]):
    """Whole mini-batches out of tensors; DataLoader calls `__getitems__` where there is one."""

    def __init__(self, tensors: list[Tensor]):
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        index = torch.tensor(indices).to(self.tensors[0].device, non_blocking=True)
        return [tensor.index_select(0, index) for tensor in self.tensors]


def _as_it_is(batch: list[Tensor]) -> list[Tensor]:
    return batch


class TensorLoader:
    """The mini-batches of another loader, indexed out of tensors.

    Args:
        loader: A `DataLoader`, or a loader of Avalanche's that mixes several data sets.
        device: Where the tensors lie.

    Raises:
        NotTensorsError: If the loader's data cannot be had as tensors without changing what it yields.
    """

    def __init__(self, loader: Any, device: torch.device | str):
        self.loader = loader
        inner = self._inner()
        if type(inner) is not DataLoader or not isinstance(inner.batch_sampler, torch.utils.data.Sampler):
            raise NotTensorsError(f"its loader is a {type(loader).__name__}")
        if inner.collate_fn is not default_collate:
            raise NotTensorsError("its loader has a collate function of its own")
        self.tensors = [tensor.to(device) for tensor in dataset_tensors(inner.dataset)]

    def _inner(self) -> Any:
        mixes = isinstance(self.loader, MultiDatasetDataLoader)
        if mixes and type(self.loader).__iter__ is MultiDatasetDataLoader.__iter__:
            return self.loader._get_loader()  # what its own __iter__ goes through, made anew for every epoch
        return self.loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Tensor]]:
        inner = self._inner()
        # A DataLoader again, because it draws a random number for every epoch, as the one it stands for does.
        yield from DataLoader(
            _Rows(self.tensors), batch_sampler=inner.batch_sampler, collate_fn=_as_it_is, generator=inner.generator
        )


class TensorLoaderPlugin(SupervisedPlugin[Any]):
    """Replaces the strategy's training loader by one over tensors, wherever it stands among the plugins.

    Every mini-batch stays as it would have been, and so do the random numbers drawn. Data whose samples pass through
    transformations (which may be random), a collate function or a class of the user's keep Avalanche's loader; a
    warning says so once.

    Args:
        device: Where to keep the data of an experience; None: the strategy's device.
    """

    def __init__(self, device: torch.device | str | None = None):
        super().__init__()
        self.device = device
        self._left: Any = None  # the loader left in place in this experience
        self._warned = False

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Replace the loader, once every plugin has had the chance to set its own."""
        loader = strategy.dataloader
        if isinstance(loader, TensorLoader) or loader is self._left:
            return
        try:
            strategy.dataloader = TensorLoader(loader, self.device or strategy.device)
        except NotTensorsError as reason:
            self._left = loader
            if not self._warned:
                self._warned = True
                warnings.warn(f"TensorLoaderPlugin leaves Avalanche's loader in place: {reason}", stacklevel=2)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Forget the loader, so that checkpoints hold none."""
        self._left = None


class ExperienceTensors(NamedTuple):
    """The samples of an experience on one device; `tasks` is None where the experience has no task labels."""

    inputs: Tensor
    targets: Tensor
    tasks: Tensor | None


def experience_tensors(experience: Any, device: torch.device | str = "cpu") -> ExperienceTensors:
    """Get the samples of an experience as tensors, for `evaluate`.

    Args:
        experience: An Avalanche experience with a data set. Transformations of its `eval` group are applied, once.
        device: Where the tensors are to lie.
    """
    dataset = experience.dataset.eval()
    try:
        columns = dataset_tensors(dataset)
    except NotTensorsError:
        batches = list(DataLoader(dataset, batch_size=256, collate_fn=dataset.collate_fn))
        columns = [torch.cat(column) for column in zip(*batches, strict=True)]
    columns = [column.to(device) for column in columns]
    return ExperienceTensors(columns[0], columns[1], columns[-1] if hasattr(experience, "task_labels") else None)


class StreamTensors(Sequence[ExperienceTensors]):
    """The samples of every experience of a stream: kept as tensors as far as there is room, else made when asked for.

    Args:
        stream: An Avalanche stream, or a list of experiences.
        device: Where the tensors are to lie.
        room: How many bytes of inputs to keep.
    """

    def __init__(self, stream: Iterable[Any], device: torch.device | str = "cpu", room: int = 2**30):
        self.experiences = list(stream)
        self.device = device
        self.room = room
        self._kept: dict[int, ExperienceTensors] = {}

    def __len__(self) -> int:
        return len(self.experiences)

    def __getitem__(self, index: Any) -> Any:
        """Return the samples of one experience."""
        if index in self._kept:
            return self._kept[index]
        found = experience_tensors(self.experiences[index], self.device)
        size = found.inputs.nbytes
        if size <= self.room:
            self.room -= size
            self._kept[index] = found
        return found


@torch.no_grad()
def evaluate(model: nn.Module, tensors: ExperienceTensors, batch_size: int = 512) -> float:
    """Measure the accuracy of a network on an experience, in evaluation mode.

    The mode of every module is put back as it was. One number is copied to the host, at the end.

    Args:
        model: A network as a strategy has it; a `MultiTaskModule` is given the task labels.
        tensors: As `experience_tensors` returned them, on the model's device.
        batch_size: Samples in one forward pass.

    Returns:
        The fraction of samples whose largest output is their label.

    Raises:
        ValueError: If there are no samples.
    """
    inputs, targets, tasks = tensors
    if not len(targets):
        raise ValueError("an experience without samples has no accuracy")
    modes = [(module, module.training) for module in model.modules()]
    right = torch.zeros((), dtype=torch.int64, device=targets.device)
    model.eval()
    try:
        for start in range(0, len(targets), batch_size):
            rows = slice(start, start + batch_size)
            output = model(inputs[rows]) if tasks is None else avalanche_forward(model, inputs[rows], tasks[rows])
            right += (output.argmax(dim=1) == targets[rows]).sum()
    finally:
        for module, training in modes:
            module.training = training
    return int(right) / len(targets)
