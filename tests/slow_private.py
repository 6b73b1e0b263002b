"""The deciding property of private units, checked by obvious loops that share no code with `plasticity.surgery`.

Units are private if, once their outgoing weights are zero, nothing that happens to their incoming weights can be seen
in the output, to the last bit.
"""

import copy

import torch
from torch import nn
from torch.utils._pytree import tree_flatten


def silence(model, group, units):
    """Set every weight through which some units are read to zero."""
    for consumer in group.readers:
        layer = model.get_submodule(consumer.layer)
        for unit in units:
            for column in consumer.columns[unit].tolist():
                if column < 0:
                    continue
                if isinstance(layer, nn.Linear):
                    layer.weight.data[:, column] = 0
                else:
                    inputs_per_group = layer.weight.shape[1]
                    outputs_per_group = layer.weight.shape[0] // layer.groups
                    first = column // inputs_per_group * outputs_per_group
                    layer.weight.data[first : first + outputs_per_group, column % inputs_per_group] = 0


def rewrite(model, group, units, generator):
    """Put other random numbers into every weight, bias and normaliser entry that writes some units."""
    for write in group.writes:
        layer = model.get_submodule(write.layer)
        for unit in units:
            row = int(write.rows[unit])
            if row >= 0:
                for tensor in (layer.weight, layer.bias):
                    if tensor is not None:
                        _scramble(tensor, row, generator)
            if write.norm is not None and int(write.norm_rows[unit]) >= 0:
                norm = model.get_submodule(write.norm)
                channel = int(write.norm_rows[unit])
                for name in ("weight", "bias", "running_mean"):
                    if getattr(norm, name, None) is not None:
                        _scramble(getattr(norm, name), channel, generator)
                if getattr(norm, "running_var", None) is not None:
                    norm.running_var[channel] = 0.5 + torch.rand((), generator=generator)


def _scramble(tensor, row, generator):
    fresh = torch.randn(tensor.data[row].shape, generator=generator, dtype=torch.float32)
    tensor.data[row] = (fresh + 0.5 * torch.rand((), generator=generator)).to(tensor.dtype)


def outputs(model, batches, seed=0):
    """Run a model over batches from the same random state and buffers, and return all tensors it gives back."""
    found = []
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    for batch in batches:
        torch.manual_seed(seed)
        with torch.no_grad():
            leaves = tree_flatten(model(*[part.clone() if isinstance(part, torch.Tensor) else part for part in batch]))[
                0
            ]
        for leaf in leaves:
            if isinstance(leaf, torch.Tensor):
                found.append(leaf.clone())
            elif hasattr(leaf, "__dict__"):
                found += [part.clone() for part in vars(leaf).values() if isinstance(part, torch.Tensor)]
    for buffer, content in buffers:
        buffer.data.copy_(content)
    return found


def equal(left, right):
    """Whether two lists of tensors are equal to the last bit."""
    if len(left) != len(right):
        return False
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(left, right, strict=True))


def random_units(group, generator):
    """Choose some of a group's units, at least one and not always the same number."""
    count = int(torch.randint(1, group.size + 1, (), generator=generator))
    return sorted(torch.randperm(group.size, generator=generator)[:count].tolist())


def check(model, units, batches, *, seed=0, alone=True, training=(False, True), effect=True, finite=True):
    """Fail unless any private units can be silenced and then rewritten without a trace in the output.

    Args:
        model: The network; left as it is.
        units: What `find_units` returned for it.
        batches: Inputs, one tuple each; they may differ from what the units were found with.
        seed: Of the choice of units and of the fresh weights.
        alone: Also take each private group by itself, not only all of them together.
        training: The modes to run in.
        effect: Also fail if rewriting units that are not silenced changes nothing, which would prove nothing.
        finite: Also fail if the output is not finite; else what is not is left out, for 0 times infinity is no number.
    """
    private = [group for group in units if group.private]
    generator = torch.Generator().manual_seed(seed)
    kept = copy.deepcopy(model.state_dict())
    modes = [(module, module.training) for module in model.modules()]
    selections = [private] + ([[group] for group in private] if alone and len(private) > 1 else [])
    seen = False
    try:
        for mode in training:
            model.train(mode)
            for groups in selections if private else []:
                chosen = [(group, random_units(group, generator)) for group in groups]
                for group, numbers in chosen:
                    silence(model, group, numbers)
                before = outputs(model, batches)
                bounded = all(bool(torch.isfinite(tensor).all()) for tensor in before if tensor.is_floating_point())
                assert bounded or not finite
                model.load_state_dict(kept)
                if not bounded:
                    continue
                for group, numbers in chosen:
                    rewrite(model, group, numbers, generator)
                unsilenced = outputs(model, batches)
                for group, numbers in chosen:  # also after the rewriting: one group may be read by another's writer
                    silence(model, group, numbers)
                after = outputs(model, batches)
                model.load_state_dict(kept)
                names = {group.name: numbers for group, numbers in chosen}
                assert equal(before, after), f"units {names} are not private in {'train' if mode else 'eval'} mode"
                seen |= not equal(before, unsilenced)
        assert seen or not private or not effect, "rewriting private units has no effect at all"
    finally:
        model.load_state_dict(kept)
        for module, flag in modes:
            module.training = flag


def check_found(units, private, watched):
    """Fail unless exactly these groups are private and these are watched only, named in text separated by spaces."""
    reasons = "\n".join(f"{group.name}: {group.reason}" for group in units if not group.private)
    for names, found in (
        (private, [group.name for group in units if group.private]),
        (watched, [group.name for group in units if not group.private]),
    ):
        assert names is None or found == names.split(), f"found {found}; watched only:\n{reasons}"
