"""Avalanche's own strategies by name, each with a tiny network that it can train, for tests of plugins beside them."""

import torch
from avalanche.benchmarks import nc_benchmark, ni_benchmark, split_online_stream
from avalanche.models import BaseModel, IncrementalClassifier, MultiHeadClassifier, MultiTaskModule, SCRModel
from avalanche.models.packnet import PackNetModel, PackNetPlugin
from avalanche.training import supervised
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised.strategy_wrappers_online import OnlineNaive
from torch import nn
from torch.utils.data import TensorDataset

WIDTH, CLASSES, EXPERIENCES, SIZE, BATCH = 6, 6, 3, 16, 8
HIDDEN = (12, 10)
DEAD = 3  # units of each hidden layer that never fire


class Samples(TensorDataset):
    """Positive inputs, in which classes can be told apart."""

    def __init__(self, size, sign=1.0):
        labels = torch.arange(CLASSES).repeat_interleave(size)
        inputs = torch.rand(len(labels), WIDTH, generator=torch.Generator().manual_seed(size))
        inputs[torch.arange(len(labels)), labels] += 1
        super().__init__(inputs, labels)
        self.targets = labels.tolist()


def stream(kind="class"):
    """Three experiences of 16 samples: "class", "task" or "domain", which all bring all classes; or "online"."""
    train, test = Samples(SIZE // 2), Samples(2)
    if kind == "domain":
        return ni_benchmark(train, test, EXPERIENCES, task_labels=False, balance_experiences=True, seed=0)
    return nc_benchmark(train, test, EXPERIENCES, task_labels=kind == "task", shuffle=False)


class Network(BaseModel, nn.Module):
    """Two hidden layers, some of their units dead."""

    def __init__(self, head=nn.Linear):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(WIDTH, HIDDEN[0]), nn.ReLU(), nn.Linear(*HIDDEN), nn.ReLU())
        self.classifier = head(HIDDEN[1]) if head is IncrementalClassifier else nn.Linear(HIDDEN[1], CLASSES)
        with torch.no_grad():
            for layer in self.features[0], self.features[2]:
                layer.weight[:DEAD] *= 0.1
                layer.bias[:DEAD] = -3.0
                layer.bias[DEAD:] = 0.5

    def forward(self, x):
        return self.classifier(self.features(x))

    def get_features(self, x):
        return self.features(x)


class MultiHead(MultiTaskModule):
    """The same with a head for each task."""

    def __init__(self):
        super().__init__()
        self.features = Network().features
        self.classifier = MultiHeadClassifier(HIDDEN[1])

    def forward(self, x, task_labels):
        return self.classifier(self.features(x), task_labels)


NETWORKS = {"fixed": Network, "growing": lambda: Network(IncrementalClassifier), "multi-head": MultiHead}

CRITERION = {"criterion": nn.CrossEntropyLoss()}
STRATEGIES = {
    "Naive": (supervised.Naive, CRITERION),
    "Replay": (supervised.Replay, {"mem_size": 12, **CRITERION}),
    "EWC": (supervised.EWC, {"ewc_lambda": 1.0, **CRITERION}),
    "LwF": (supervised.LwF, {"alpha": 1.0, "temperature": 2.0, **CRITERION}),
    "SI": (supervised.SynapticIntelligence, {"si_lambda": 1.0, **CRITERION}),
    "MAS": (supervised.MAS, CRITERION),
    "GEM": (supervised.GEM, {"patterns_per_exp": 6, **CRITERION}),
    "A-GEM": (supervised.AGEM, {"patterns_per_exp": 6, "sample_size": 6, **CRITERION}),
    "DER": (supervised.DER, {"mem_size": 12, "batch_size_mem": 4, **CRITERION}),
    "iCaRL": (supervised.ICaRL, {"memory_size": 12, "buffer_transform": None, "fixed_memory": True}),
    "LFL": (supervised.LFL, {"lambda_e": 0.1, **CRITERION}),
    "CWR*": (supervised.CWRStar, {"cwr_layer_name": "classifier", **CRITERION}),
    "PackNet": (supervised.Naive, {"train_epochs": 2, **CRITERION}),  # supervised.PackNet loses its plugins
    "Cumulative": (supervised.Cumulative, CRITERION),
    "JointTraining": (supervised.JointTraining, CRITERION),
    "GDumb": (supervised.GDumb, {"mem_size": 12, **CRITERION}),
    "FromScratch": (supervised.FromScratchTraining, CRITERION),
    "OnlineNaive": (OnlineNaive, CRITERION),
    "SCR": (supervised.SCR, {"augmentations": nn.Identity(), "mem_size": 12, "batch_size_mem": 4}),
    "ER-ACE": (supervised.ER_ACE, {"mem_size": 12, "batch_size_mem": 4}),
}


class Silent:
    """A logger that keeps what it is told."""

    def __init__(self):
        self.values = []

    def log_metrics(self, values):
        self.values += values


def build(name, plugins, network=None, lr=0.05, **settings):
    """Make a strategy of Avalanche's with a network that fits it.

    Args:
        name: Of `STRATEGIES`.
        plugins: Its plugins.
        network: Of `NETWORKS`; None: the one that the strategy needs.
        lr: Learning rate of plain gradient descent with momentum.
        **settings: Further arguments.
    """
    kind, arguments = STRATEGIES[name]
    model = NETWORKS[network or "fixed"]()
    if name == "PackNet":
        model, plugins = PackNetModel(model), [*plugins, PackNetPlugin(1, 0.5)]
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    given = {"model": model}
    if name == "iCaRL":
        given = {"feature_extractor": model.features, "classifier": model.classifier}
    elif name == "SCR":
        given = {"model": SCRModel(model.features, nn.Linear(HIDDEN[1], 4))}
    elif name == "CWR*":
        arguments = {**arguments, "cwr_layer_name": "classifier"}
    return kind(
        **given,
        **{
            "optimizer": optimizer,
            "train_mb_size": BATCH,
            "eval_mb_size": 8,
            "plugins": list(plugins),
            "evaluator": EvaluationPlugin(loggers=[Silent()]),
            **arguments,
            **settings,
        },
    )


def learn(strategy, benchmark, evaluate=True, online=False):
    """Train on all experiences; evaluate behind each."""
    if isinstance(strategy, supervised.JointTraining):
        strategy.train(benchmark.train_stream, eval_streams=[benchmark.test_stream])
        strategy.eval(benchmark.test_stream)
        return strategy
    experiences = benchmark.train_stream
    if online:
        experiences = split_online_stream(experiences, experience_size=8, access_task_boundaries=True)
    for experience in experiences:
        strategy.train(experience, eval_streams=[benchmark.test_stream])
        if evaluate:
            strategy.eval(benchmark.test_stream)
    return strategy
