"""Half precision in a strategy: beside a loop that is written down step by step, and what plugins see of it."""

import copy
import pickle

import pytest
import torch
from avalanche.evaluation.metrics import loss_metrics
from avalanche.models import MultiHeadClassifier, MultiTaskModule
from avalanche.training import DER, Naive
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from torch import nn

from benchmarks.streams import make_stream
from plasticity.errors import UserError
from plasticity.loading import MixedPrecisionPlugin, TensorLoaderPlugin
from plasticity.plugins import L2InitPlugin

COUNT, BATCH = 24, 8
METHODS = ("forward", "criterion", "backward", "optimizer_step")


def data(seed=0, size=COUNT):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 6, generator=generator), torch.arange(size) % 4


def stream(scenario="domain"):
    parts = [data(0), data(1)]
    return make_stream(parts, parts, scenario).streams["train"]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))


def strategy(*plugins, model=None, optimizer=None, kind=Naive, **settings):
    model = model or network()
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    settings = {"train_mb_size": BATCH, "evaluator": EvaluationPlugin(), **settings}
    return kind(model=model, optimizer=optimizer, criterion=nn.CrossEntropyLoss(), plugins=list(plugins), **settings)


def by_hand(precision, scale=2.0**16, order=None):
    """Both experiences, in the order in which the strategy has drawn them, by PyTorch's own recipe."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=precision == "float16")
    for inputs, labels in order:
        optimizer.zero_grad()
        with torch.autocast("cpu", getattr(torch, precision)):
            loss = nn.functional.cross_entropy(model(inputs), labels)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    return model, scaler


class Spy(SupervisedPlugin):
    """Keeps mini-batches, outputs, losses and gradients."""

    def __init__(self):
        super().__init__()
        self.batches, self.seen, self.gradients, self.scaled = [], [], [], []

    def before_backward(self, strategy, *args, **kwargs):
        self.batches.append((strategy.mb_x.clone(), strategy.mb_y.clone()))
        self.seen.append((strategy.mb_output.dtype, strategy.loss.dtype, float(strategy.loss.detach())))

    def after_backward(self, strategy, *args, **kwargs):
        self.scaled.append(self.layer(strategy).weight.grad.clone())

    def before_update(self, strategy, *args, **kwargs):
        self.gradients.append(self.layer(strategy).weight.grad.clone())

    def layer(self, strategy):
        return strategy.model[0]


@pytest.mark.parametrize("quick", [True, False], ids=["quick", "Avalanche's loop"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_weights_are_those_of_pytorchs_own_recipe(precision, quick):
    spy = Spy()
    ours = strategy(MixedPrecisionPlugin(precision), spy, *([TensorLoaderPlugin()] if quick else []))
    for experience in stream():
        ours.train(experience)
    expected, _ = by_hand(precision, order=spy.batches)
    assert len(spy.batches) == 2 * COUNT // BATCH
    assert all(torch.equal(p, q) for p, q in zip(ours.model.parameters(), expected.parameters(), strict=True))
    assert {kinds[:2] for kinds in spy.seen} == {(getattr(torch, precision), torch.float32)}
    assert all(parameter.dtype == torch.float32 for parameter in ours.model.parameters())


def test_steps_that_overflow_are_left_out_and_the_scale_falls():
    """With a scale at which float16 overflows: as in PyTorch's recipe, until it has fallen far enough."""
    spy, plugin = Spy(), MixedPrecisionPlugin("float16", scale=2.0**21)
    ours = strategy(plugin, spy, train_epochs=2)
    before = copy.deepcopy(ours.model[0].weight)
    ours.train(stream()[0])
    expected, scaler = by_hand("float16", 2.0**21, spy.batches)
    assert all(torch.equal(p, q) for p, q in zip(ours.model.parameters(), expected.parameters(), strict=True))
    assert plugin.state_dict() == scaler.state_dict() and plugin.state_dict()["scale"] < 2.0**21
    assert not spy.gradients[0].isfinite().all() and spy.gradients[-1].isfinite().all()
    assert not torch.equal(before, ours.model[0].weight)


def test_gradients_have_the_scale_scaledand_none_before_the_update():
    spy = Spy()
    strategy(MixedPrecisionPlugin("float16", scale=1024.0), spy).train(stream()[0])
    for scaled, real in zip(spy.scaled, spy.gradients, strict=True):
        assert torch.equal(scaled / 1024, real) and real.abs().max() > 0
    assert max(loss for *_, loss in spy.seen) < 10  # what plugins and loggers see is the loss itself


def test_a_penalty_on_gradients_weighs_as_much_as_without_a_scale():
    """In the first step, from equal weights that have moved from their initial ones by a known way."""
    found = {}
    for precision in (None, "bfloat16", "float16"):
        spy, penalty = Spy(), L2InitPlugin(strength=10.0)
        ours = strategy(*([MixedPrecisionPlugin(precision)] if precision else []), penalty, spy)
        torch.manual_seed(3)
        ours.train(stream()[0])
        found[precision] = spy.gradients[-1]
    for precision in ("bfloat16", "float16"):
        torch.testing.assert_close(found[precision], found[None], rtol=0.1, atol=0.02)


def test_evaluation_is_in_that_precision_within_training_and_outside_of_it():
    class Kinds(SupervisedPlugin):
        def after_eval_forward(self, strategy, *args, **kwargs):
            found.append((strategy.is_training, strategy.mb_output.dtype))

        def after_forward(self, strategy, *args, **kwargs):
            found.append((strategy.is_training, strategy.mb_output.dtype))

    found = []
    evaluator = EvaluationPlugin(loss_metrics(experience=True))
    ours = strategy(MixedPrecisionPlugin(), Kinds(), evaluator=evaluator, eval_every=1, train_epochs=2)
    ours.train(stream()[0], eval_streams=[[stream()[1]]])
    ours.eval([stream()[1]])
    assert {training for training, _ in found} == {True, False} and {kind for _, kind in found} == {torch.bfloat16}
    assert not set(METHODS) & set(vars(ours))


def test_a_strategy_has_its_own_methods_back_also_after_training_was_broken_off():
    class Breaking(SupervisedPlugin):
        def after_forward(self, strategy, *args, **kwargs):
            if self.on:
                raise KeyboardInterrupt

    breaking, spy = Breaking(), Spy()
    ours = strategy(MixedPrecisionPlugin("float16"), breaking, spy)
    own = ours.criterion
    breaking.on = True
    with pytest.raises(KeyboardInterrupt):
        ours.train(stream()[0])
    breaking.on = False
    ours.train(stream()[1])
    assert ours.criterion == own and not set(METHODS) & set(vars(ours))
    expected, _ = by_hand("float16", order=spy.batches)
    assert all(torch.equal(p, q) for p, q in zip(ours.model.parameters(), expected.parameters(), strict=True))


def test_the_scale_is_saved_and_taken_over():
    plugin = MixedPrecisionPlugin("float16", scale=2.0**21)
    strategy(plugin).train(stream()[0])
    state = plugin.state_dict()
    assert 0 < state["scale"] < 2.0**21
    for other in (MixedPrecisionPlugin("float16"), MixedPrecisionPlugin("float16")):
        other.load_state_dict(state)
        assert other.state_dict() == state
    assert pickle.loads(pickle.dumps(plugin)).state_dict() == state
    strategy(other, train_mb_size=COUNT).train(stream()[0])  # one step, which it takes at that scale
    assert other.state_dict()["_growth_tracker"] == state["_growth_tracker"] + 1
    assert other.state_dict()["scale"] == state["scale"]
    assert MixedPrecisionPlugin().state_dict() == {}


def test_heads_of_several_tasks_are_computed_in_float32():
    class Heads(MultiTaskModule):
        def __init__(self):
            super().__init__()
            self.trunk, self.head = nn.Linear(6, 16), MultiHeadClassifier(16, 4)

        def forward(self, x, task_labels):
            features.append(self.trunk(x).relu())
            return self.head(features[-1], task_labels)

    features, spy = [], Spy()
    model = Heads()
    own = model.head.forward
    spy.layer = lambda strategy: strategy.model.trunk
    ours = strategy(MixedPrecisionPlugin(), spy, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    for experience in stream("task"):
        ours.train(experience)
    assert {each.dtype for each in features} == {torch.bfloat16}
    assert {kinds[:2] for kinds in spy.seen} == {(torch.float32, torch.float32)}
    assert model.head.forward == own and "forward" not in vars(model.head)
    model(data()[0], torch.zeros(COUNT, dtype=torch.int64))
    assert features[-1].dtype == torch.float32  # whoever runs the model by himself runs it as it is


def test_what_it_cannot_reach_is_refused():
    with pytest.raises(UserError, match="unknown precision 'float8': there are bfloat16, float16"):
        MixedPrecisionPlugin("float8")
    with pytest.raises(UserError, match="DER has a training epoch of its own"):
        strategy(MixedPrecisionPlugin(), kind=DER, mem_size=8).train(stream()[0])

    class Stepping(Naive):
        def optimizer_step(self):
            self.optimizer.step()

    with pytest.raises(UserError, match="Stepping has an optimizer_step of its own.* take bfloat16"):
        strategy(MixedPrecisionPlugin("float16"), kind=Stepping).train(stream()[0])
    strategy(MixedPrecisionPlugin("bfloat16"), kind=Stepping).train(stream()[0])
