"""Samples of an experience as tensors, and quick evaluation."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
from avalanche.models import avalanche_forward
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.streams.builders import derived_seed
from plasticity.loading import NotTensorsError, Rows, dataset_rows, dataset_tensors
from plasticity.tracing.preserve import Uncompiled

_TO_TEST = 1729  # a purpose that no stream draws for


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


class _Inputs:
    """Inputs on a device that are made of stored ones when some of them are asked for."""

    def __init__(self, rows: Rows, device: torch.device | str):
        self.rows = rows
        self.device = device

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        chosen = torch.arange(len(self.rows))[index] if isinstance(index, slice) else index.cpu()
        return self.rows.samples(chosen)[0].to(self.device)


def experience_samples(experience: Any, device: torch.device | str = "cpu") -> ExperienceTensors:
    """As `experience_tensors`, for those who need few of the samples: inputs are made when they are asked for.

    Args:
        experience: An Avalanche experience with a data set.
        device: Where the tensors are to lie.
    """
    try:
        rows = dataset_rows(experience.dataset.eval())
    except NotTensorsError:
        return experience_tensors(experience, device)
    if any(step.random for step in rows.steps):
        return experience_tensors(experience, device)
    labels, tasks = rows.columns[1].to(device), rows.columns[-1].to(device)
    known = hasattr(experience, "task_labels")
    return ExperienceTensors(cast(Tensor, _Inputs(rows, device)), labels, tasks if known else None)


def to_test(index: int, count: int | None, seed: int, last: int) -> list[int]:
    """Say on which experiences a network is to be tested after learning one.

    Tests on all of them take a time that grows with the square of a stream's length.

    Args:
        index: The experience just learned.
        count: How many of the earlier ones; they are drawn from the seed, anew after each experience, and alike for all
            strategies. None: all.
        seed: Of the run.
        last: From this experience on all are tested, for the measures at the end.

    Returns:
        Their numbers, in order; the one just learned is the last.
    """
    if count is None or index >= last or count >= index:
        return list(range(index + 1))
    generator = torch.Generator().manual_seed(derived_seed(seed, _TO_TEST, index))
    return [*sorted(torch.randperm(index, generator=generator)[:count].tolist()), index]


def room(count: int | None) -> int:
    """Say how many bytes of test inputs to keep.

    Making them anew takes far less time than a test. Where few are tested none are kept, so that it takes the same time
    in each experience.

    Args:
        count: On how many earlier experiences a network is tested after each; None: on all.
    """
    return 2**30 if count is None else 0


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

    The mode of every module is put back as it was. One number is copied to the host, at the end. What `torch.compile`
    made of the network is not used: it would have to be made anew for each number of samples.

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
        with Uncompiled():
            for start in range(0, len(targets), batch_size):
                rows = slice(start, start + batch_size)
                output = model(inputs[rows]) if tasks is None else avalanche_forward(model, inputs[rows], tasks[rows])
                right += (output.argmax(dim=1) == targets[rows]).sum()
    finally:
        for module, training in modes:
            module.training = training
    return int(right) / len(targets)
