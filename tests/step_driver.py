"""Training steps through every callback of a strategy's plugins, without a loop, loader or evaluator of Avalanche's."""

from types import SimpleNamespace

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from plasticity import find_units
from strategies import Context, parse


class Operations(TorchDispatchMode):
    """Counts PyTorch's operations."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def mlp(depth, width):
    hidden = [layer for _ in range(depth - 1) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), *hidden, nn.Linear(width, 4))


class Strategy(SimpleNamespace):
    """What plugins see of a strategy."""

    def forward(self):
        """Run the model on the mini-batch."""
        return self.model(self.mb_x)


class Steps:
    """A strategy that takes single steps on random mini-batches of 6.

    Args:
        name: Of the strategy.
        model: The network, on the CPU.
        shape: Of a sample.
        device: Where to train it.
        half: Whether activations and gradients are bfloat16 and channels last in memory, as a GPU has them.

    Attributes:
        strategy: What plugins are called with.
        units: What `find_units` finds on the CPU.
    """

    def __init__(self, name, model, shape, device="cpu", half=False):
        (strategy,) = parse(name)
        self.shape, example = shape, (torch.randn(4, *shape),)
        if strategy.network is not None:
            model = strategy.network(model, example)
        plugins = strategy.plugins(Context(lambda: model, 0, 1, 6, 2))
        self.units = find_units(model, example)
        self.dtype = torch.bfloat16 if half else torch.float32
        model = model.to(device, self.dtype)
        if half:
            model = model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(model.parameters(), foreach=False)
        if strategy.optimizer is not None:
            optimizer = strategy.optimizer(list(model.parameters()), "adam", 1e-3)
        elif device == "meta":  # torch's own single-tensor Adam reads its step count
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        self.strategy = Strategy(
            model=model,
            optimizer=optimizer,
            device=torch.device(device),
            plugins=plugins,
            experience=SimpleNamespace(current_experience=1, classes_in_this_experience=range(4)),
            adapted_dataset=range(600),
            dataloader=range(100),
            train_epochs=1,
            clock=SimpleNamespace(train_iterations=0),
            evaluator=SimpleNamespace(publish_metric_value=lambda value: None),
            _criterion=nn.CrossEntropyLoss(),
            is_training=True,
        )
        for moment in "before_train_dataset_adaptation", "before_training_exp", "before_training_epoch":
            self._all(moment)

    def _all(self, moment):
        for plugin in self.strategy.plugins:
            getattr(plugin, moment)(self.strategy)

    def step(self):
        """One step as `Naive` takes it."""
        s = self.strategy
        s.mb_x = torch.randn(6, *self.shape, device=s.device, dtype=self.dtype)
        if s.mb_x.dim() == 4 and self.dtype != torch.float32:
            s.mb_x = s.mb_x.to(memory_format=torch.channels_last)
        s.mb_y = torch.zeros(6, dtype=torch.int64, device=s.device)
        self._all("before_training_iteration")
        s.optimizer.zero_grad()
        self._all("before_forward")
        s.mb_output = s.forward()
        self._all("after_forward")
        s.loss = s._criterion(s.mb_output, s.mb_y)
        self._all("before_backward")
        s.loss.backward()
        self._all("after_backward")
        self._all("before_update")
        s.optimizer.step()
        self._all("after_update")
        self._all("after_training_iteration")


def operations(name, model, shape=(5,), warm_up=3, steps=2):
    """Return how many operations some steps take, and the plugins, once the first ones are over."""
    torch.manual_seed(0)
    driver = Steps(name, model, shape)
    for _ in range(warm_up):
        driver.step()
    with Operations() as counted:
        for _ in range(steps):
            driver.step()
    return counted.count, driver.strategy.plugins


__all__ = ["Operations", "Steps", "mlp", "operations"]
