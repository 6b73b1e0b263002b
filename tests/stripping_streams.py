"""Streams, networks with dead units, and strategies for the tests of the stripping plugin."""

import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.supervised import Naive
from torch import nn
from torch.utils.data import TensorDataset

from plasticity.plugins import SynapticStrippingPlugin

SIZE = 24  # training samples of an experience
DEAD = 6  # of the first layer, of units made dead


class Samples(TensorDataset):
    """Positive inputs; the first feature tells samples apart, and test samples by its sign."""

    def __init__(self, classes, size, sign=1, shape=(8,)):
        labels = torch.arange(classes).repeat_interleave(size // 2)
        inputs = torch.rand(len(labels), *shape, generator=torch.Generator().manual_seed(classes))
        numbers = inputs.view(len(labels), -1)
        numbers[:, 0] = sign * torch.arange(1, len(labels) + 1) / 1000
        numbers[:, 1] += labels / 2
        super().__init__(inputs, labels)
        self.targets = labels.tolist()


def stream(experiences=3, size=SIZE, task_labels=False, **shape):
    """Experiences of two classes each, and their test streams."""
    classes = 2 * experiences
    train, test = Samples(classes, size, **shape), Samples(classes, 8, sign=-1, **shape)
    return nc_benchmark(train, test, experiences, task_labels=task_labels, shuffle=False)


def make_dead(layer):
    """Make six units dead for positive inputs: three by their weights, three by their bias alone."""
    with torch.no_grad():
        layer.weight.abs_(), layer.bias.fill_(0.2)
        layer.weight[:3, 2:] *= -1
        layer.weight[:3, :2] *= 0.01
        layer.bias[:3] = -0.2
        layer.bias[3:DEAD] = -20


class Network(nn.Module):
    """Two hidden layers, dropout, and a head that grows."""

    def __init__(self, dead=True, dropout=0.2):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Dropout(dropout), nn.Linear(20, 10), nn.ReLU())
        self.classifier = IncrementalClassifier(10)
        make_dead(self.features[0])
        with torch.no_grad():
            if not dead:
                self.features[0].bias.fill_(1), self.features[0].weight.abs_(), self.features[3].weight.abs_()
            self.features[3].bias.fill_(3)

    def forward(self, x):
        return self.classifier(self.features(x))


class FixedHead(Network):
    """The same with a head of all classes."""

    def __init__(self):
        super().__init__(dropout=0.0)
        self.classifier = nn.Linear(10, 6)


class MultiHead(MultiTaskModule):
    """The same with a head for each task."""

    def __init__(self):
        super().__init__()
        self.features = Network().features
        self.classifier = MultiHeadClassifier(10)

    def forward(self, x, task_labels):
        return self.classifier(self.features(x), task_labels)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.1),
}


def naive(model, plugins, optimizer="sgd", loggers=(), **settings):
    settings = {"train_mb_size": 8, "train_epochs": 2, "eval_mb_size": 8, **settings}
    return Naive(
        model=model,
        optimizer=OPTIMIZERS[optimizer](model.parameters()),
        criterion=nn.CrossEntropyLoss(),
        plugins=[plugin for plugin in plugins if plugin is not None],
        evaluator=EvaluationPlugin(loggers=list(loggers) or [Recorder()]),
        **settings,
    )


class Recorder:
    """A logger that keeps what it is told."""

    def __init__(self):
        self.values = []

    def log_metrics(self, values):
        self.values += values


class Stripping(SynapticStrippingPlugin):
    """Counts again by itself what each treatment did, and notes on which samples."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.probes, self.recounts = [], []

    def treat(self, model, units, probe, optimizer, generator):
        inputs = torch.cat([batch[0] for batch in probe.batches])
        before, removed = self.dead(model, probe), self.zeros(model)
        report = super().treat(model, units, probe, optimizer, generator)
        after = self.dead(model, probe)
        self.probes.append((inputs.flatten(1)[:, 0] * 1000).round().int().tolist())
        self.recounts.append(
            {
                "dead": len(before),
                "revived": len(before - after),
                "still_dead": len(after),
                "connections": self.zeros(model) - removed,
            }
        )
        return report

    @staticmethod
    def dead(model, probe):
        """Units whose ReLU gives only zeros, by module."""
        sums, handles = {}, []
        for name, module in model.named_modules():
            if isinstance(module, nn.ReLU):
                handles.append(
                    module.register_forward_hook(
                        lambda module, args, output, name=name: sums.__setitem__(
                            name,
                            sums.get(name, 0) + output.abs().flatten(2).sum((0, 2))
                            if output.dim() > 2
                            else sums.get(name, 0) + output.abs().sum(0),
                        )
                    )
                )
        training = model.training
        model.eval()
        with torch.no_grad():
            for batch in probe.batches:
                model(*batch)
        model.train(training)
        for handle in handles:
            handle.remove()
        return {(name, u) for name, total in sums.items() for u in (total == 0).nonzero().flatten().tolist()}

    @staticmethod
    def zeros(model):
        weights = (module.weight for module in model.features if isinstance(module, nn.Linear))
        return sum(int((weight == 0).sum()) for weight in weights)


class MasksHold(SupervisedPlugin):
    """Looks after every update whether removed weights and their gradients are exactly 0, and other weights not."""

    def __init__(self, stripping):
        super().__init__()
        self.stripping, self.checks = stripping, 0

    def after_update(self, strategy, **kwargs):
        for name in self.stripping.masks:
            weight = strategy.model.get_submodule(name).weight
            kept = self.stripping.masks.kept(strategy.model, name)
            assert torch.equal(weight != 0, kept)
            assert not weight.grad[~kept].any()
            self.checks += 1


def run(plugins, model=Network, experiences=None, evaluate=False, shuffle=True, **settings):
    """Train on a stream and return the strategy."""
    torch.manual_seed(0)
    strategy = naive(model(), plugins, **settings)
    benchmark = stream() if experiences is None else experiences
    torch.manual_seed(1)
    for experience in getattr(benchmark, "train_stream", benchmark):
        strategy.train(experience, shuffle=shuffle)
        if evaluate:
            strategy.eval(benchmark.test_stream)
    return strategy


def everything(strategy):
    """Weights, buffers and optimizer state as a flat list of tensors."""
    tensors = list(strategy.model.state_dict().values())
    for group in strategy.optimizer.param_groups:
        for parameter in group["params"]:
            state = strategy.optimizer.state.get(parameter, {})
            tensors += [value for _, value in sorted(state.items()) if isinstance(value, torch.Tensor)]
    return tensors


def same(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class SeenSamples(SupervisedPlugin):
    """Notes the samples of all training mini-batches."""

    def __init__(self):
        super().__init__()
        self.numbers = []

    def before_forward(self, strategy, **kwargs):
        self.numbers += (strategy.mb_x.flatten(1)[:, 0] * 1000).round().int().tolist()
