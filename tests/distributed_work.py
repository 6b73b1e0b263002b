"""What the processes of tests/test_distributed.py do; each writes what came of it into a file."""

import datetime
import os
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from plasticity import distributed, find_units, watch
from plasticity.errors import UserError
from plasticity.methods.synaptic_stripping import PRESETS, strip_dead_units
from plasticity.probe import Probe
from plasticity.surgery.masks import Masks

WORLD = 2


def join(rank, store):
    torch.set_num_threads(1)
    limit = datetime.timedelta(minutes=5)  # the other one may be slow on a busy machine
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD, timeout=limit)


# --- a plain loop --------------------------------------------------------------------------------------------------


def parts(step):
    """The parts of a mini-batch that each process gets; the last is smaller, and uneven."""
    generator = torch.Generator().manual_seed(step)
    sizes = (3, 1) if step == 3 else (5, 4)
    return [
        (torch.rand(size, 6, generator=generator), torch.randint(3, (size,), generator=generator)) for size in sizes
    ]


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        net[0].bias[:4] = -0.9
    return net


def plain_loop(rank=None):
    """Watch and strip; of one process, `rank` None, on the parts put together."""
    net = network()
    model = net if rank is None else DistributedDataParallel(net)
    group = distributed.group_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    units = find_units(net, torch.rand(2, 6, generator=torch.Generator().manual_seed(0)))
    seen, masks = [], Masks()
    with watch(model, units) as activity:
        for step in range(4):
            mine = parts(step) if rank is None else [parts(step)[rank]]
            optimizer.zero_grad()
            # what DistributedDataParallel does: the mean of the means of the parts
            sum(nn.functional.cross_entropy(model(x), y) for x, y in mine).div(len(mine)).backward()
            optimizer.step()
            seen.append((torch.cat([x for x, _ in mine]),))
    statistics = distributed.of_all(activity.statistics(), group)
    latest = distributed.batches_of_all(seen, 20, group)
    if group is None:
        latest = [(torch.cat([x for (x,) in seen])[-20:],)]
    report = strip_dead_units(net, units, Probe.joined(latest), masks, PRESETS["whitaker2023"], optimizer, None)
    distributed.require_agreement(model, group, "stripping")
    return {
        "statistics": {name: (s.fired, s.count, s.mean, s.mean_abs) for name, s in statistics.items()},
        "latest": torch.cat([x for (x,) in latest]),
        "report": report.as_dict(),
        "masks": masks.state_dict(),
        "weights": net.state_dict(),
    }


# --- strategies ----------------------------------------------------------------------------------------------------


def naive(plugins, wrapped, metrics=(), network="fixed", wrap=True):
    from avalanche_strategies import build

    torch.manual_seed(0)
    strategy = build("Naive", plugins, network=network, train_mb_size=3 if wrapped else 3 * WORLD, train_epochs=1)
    strategy.evaluator.metrics += metrics
    if wrapped and wrap:
        strategy.model = DistributedDataParallel(strategy.model, find_unused_parameters=True)
    return strategy


def trained(plugin, wrapped, *others):
    """Train beside a plugin, and others, on three experiences, in order; returns weights, reports and metrics."""
    from avalanche_strategies import stream

    from plasticity.metrics import plasticity_metrics

    metrics = plasticity_metrics(epoch=True, measures=["DeadUnits", "DormantUnits", "EffectiveRank"])
    strategy = naive([plugin, *others], wrapped, metrics)
    for experience in stream().train_stream:
        strategy.train(experience, shuffle=False)
    network = strategy.model.module if wrapped else strategy.model
    (logger,) = strategy.evaluator.loggers
    return {
        "weights": network.state_dict(),
        "history": plugin.history,
        "metrics": [(value.name, value.value) for value in logger.values],
    }


def normalised(rank):
    """Weights and reports with batch normalisation, whose statistics each process has its own of in training."""
    from avalanche_strategies import stream

    from plasticity.plugins import ReDoPlugin

    redo = ReDoPlugin(every=1, tau=0.6)
    strategy = naive([redo], False)
    features = strategy.model.features
    features.insert(1, nn.BatchNorm1d(len(features[0].weight)))
    strategy.optimizer.add_param_group({"params": list(features[1].parameters())})
    strategy.train_mb_size = 3
    strategy.model = DistributedDataParallel(strategy.model)
    for experience in stream().train_stream:
        strategy.train(experience, shuffle=False)
    return {"weights": strategy.model.module.state_dict(), "history": redo.history}


def refusals(rank):
    """What is refused, by name: the message."""
    from avalanche_strategies import stream

    from plasticity import plugins

    def seeds(strategy):
        with torch.no_grad():
            for parameter in strategy.model.module.parameters():
                parameter.add_(0.1 * rank)

    cases = {
        "shrink": (plugins.DemonPruningPlugin("shrink"), {}, None),
        "self-label": (plugins.HyperHypoPlugin(self_label=True), {}, None),
        "not wrapped": (plugins.L2Plugin(), {"wrap": False}, None),
        "seeds": (plugins.ReDoPlugin(every=2), {}, seeds),
        "steps": (plugins.L2Plugin(), {}, seeds),
        "step-wise": (plugins.ContinualBackpropPlugin(), {}, seeds),
        "growing": (plugins.ReDoPlugin(every="epoch"), {"network": "multi-head"}, None),
    }
    found = {}
    for name, (plugin, settings, change) in cases.items():
        strategy = naive([plugin], True, **settings)
        if change is not None:
            change(strategy)
        try:
            for experience in stream("task" if settings.get("network") else "class").train_stream:
                strategy.train(experience, shuffle=False)
            found[name] = "nothing was refused"
        except UserError as error:
            found[name] = str(error)
    return found


def session(rank, folder):
    """All checks with two processes that live, in one go."""
    # These import Avalanche, which makes a logger then, and there may be one in the first process only.
    from avalanche_plugins import PLUGINS

    from plasticity.loading import TensorLoaderPlugin

    join(rank, folder / "session")
    results = {"plain": plain_loop(rank), "normalised": normalised(rank), "refused": refusals(rank), "plugins": {}}
    for name in PLUGINS:
        if name != "demon-pruning-shrink":
            results["plugins"][name] = trained(PLUGINS[name](), True)
    results["quick"] = trained(PLUGINS["redo"](), True, TensorLoaderPlugin())
    torch.save(results, folder / f"session-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


# --- processes that are lost ---------------------------------------------------------------------------------------


def lost(rank, how, folder):
    """The second process ends, or does not come; the first waits for it."""
    join(rank, folder / how)
    model = DistributedDataParallel(network())
    distributed.require_agreement(model, distributed.group_of(model), "both")
    told = folder / f"{how}.pt"
    if rank == 1:
        end = time.monotonic() + 120
        while how == "does-not-come" and not told.exists() and time.monotonic() < end:
            time.sleep(0.05)
        os._exit(3)
    distributed.PATIENCE = datetime.timedelta(seconds=1)
    began = time.monotonic()
    try:
        if how == "ends-in-a-step":
            model(torch.rand(2, 6)).sum().backward()
        else:
            distributed.add_up([torch.ones(3)], distributed.group_of(model))
        message = "it has not noticed"
    except (UserError, RuntimeError) as error:
        message = str(error)
    torch.save({"message": message, "seconds": time.monotonic() - began}, told)
    os._exit(0)  # the process group cannot be left in order
