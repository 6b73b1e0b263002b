"""The tracer where it is easily wrong: aliases, weights used otherwise, every rearrangement."""

import pytest
import slow_private
import torch
import torch.nn.functional as F
from cases import Net
from cases_leaks import LEAKS
from cases_traps import TRAPS
from cases_weights import WEIGHTS
from torch import nn

from plasticity import find_units, watch


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad", "ignore:Sparse")
@pytest.mark.parametrize("case", [*TRAPS, *LEAKS, *WEIGHTS], ids=lambda case: case.name)
def test_traps(case):
    model, batches = case.model(), case.inputs()
    units = find_units(model, batches[0])
    slow_private.check_found(units, case.private, case.watched)
    slow_private.check(model, units, batches, training=case.training)


# --- what is said about them -----------------------------------------------------------------------------------------

REASONS = {
    "one unit steers the program": "its value steers the program (`_local_scalar_dense`)",
    "numpy": "its value leaves PyTorch by __array__() in ``",
    "custom operator with a known name": "`clone` may mix it with other units",
    "written through a view": "its memory is overwritten through another view",
    "kept in a buffer": "it is kept in `memory`",
    "kept in an attribute": "it is kept in `memory`",
    "kept in an object": "it is kept after the forward pass",
    "an array of the same memory": "its memory is also that of an array outside of PyTorch",
    "gathered by the input": "the input chooses among units (`gather`)",
    "one row for several units": "one row of `a` writes several of its units",
    "concatenated with the input before the activation": "some of its units are written by no Linear or Conv layer",
    "a weight among the outputs": "the weight of `a` is used more than once",
    "an object with units among its attributes": "it reaches the output of the model",
    "the bias is used again": "the bias of `a` is used more than once",
    "a copy of the weight is used again": "the weight of `a` is used more than once",
    "a shared BatchNorm": "the weight of `norm` is used more than once",
    "a shared BatchNorm without parameters": "the running_mean of `norm` is used more than once",
    "tied to a layer that is not run": "the weight of `b` is also `c.weight`",
    "tied weights": "the weight of `d` is used more than once",
    "a layer that is not used": "`c` is not used by this example and may read it",
    "heads of a user's own, one of them on no samples": "`heads.0` is not used by this example and may read it",
    "sparse matrix": "`_sparse_addmm` may mix it with other units",
}


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad", "ignore:Sparse")
@pytest.mark.parametrize("name", REASONS)
def test_reasons(name):
    (case,) = [case for case in (*TRAPS, *LEAKS, *WEIGHTS) if case.name == name]
    group = next(iter(find_units(case.model(), case.inputs()[0])))
    assert not group.private
    assert group.reason == REASONS[name]


def test_several_rows_for_one_unit_are_all_named():
    model = Net(
        lambda m, x: m.b(F.relu(m.norm(m.a(x)).view(len(x), 2, 4).sum(1))),
        a=nn.Linear(6, 8),
        norm=nn.BatchNorm1d(8),
        b=nn.Linear(4, 3),
    )
    model.function = lambda m, x: m.b(F.relu((z := m.norm(m.a(x)))[:, :4] + z[:, 4:]))
    (group,) = find_units(model, torch.randn(5, 6))
    assert group.producers == ("a",)
    assert [write.rows.tolist() for write in group.writes] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [write.norm_rows.tolist() for write in group.writes] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_units_along_two_dimensions_are_skipped():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(2, 3, 1))
    units = find_units(model, torch.randn(2, 3, 8, 8))
    assert len(units) == 0
    assert units.skipped == ("relu in `2` after `0`: its units lie along several dimensions",)
    assert str(units) == (
        "no hidden units: no Linear or Conv layer is followed by an activation\n"
        "skipped: relu in `2` after `0`: its units lie along several dimensions"
    )


def test_computed_weights_are_watched_and_cannot_be_changed():
    for normed in (nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm):
        model = nn.Sequential(normed(nn.Conv1d(3, 4, 3)), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 2, 1))
        x = torch.randn(2, 3, 8)
        (group,) = units = find_units(model, x)
        assert (group.name, group.norm, group.private) == ("0", "1", False)
        assert group.reason == "the weight of `0` is computed from other parameters"
        assert group.writes[0].rows.tolist() == [-1] * 4
        model.eval()
        with watch(model, units) as activity:
            model(x)
        expected = (model[:3](x) > 0).sum((0, 2))
        assert torch.equal(activity.statistics()["0"].fired, expected)


# --- rearrangements of (2, 4, 4, 4) activations ----------------------------------------------------------------------

_CHANGES = [
    lambda h: h.sum((2, 3)),
    lambda h: h.mean(-1, keepdim=True),
    lambda h: h.amax((-1, -2)),
    lambda h: h.max(-2).values,
    lambda h: h.median(3).values,
    lambda h: h.var((2, 3), correction=0),
    lambda h: h.std(dim=(-2, -1), keepdim=True),
    lambda h: torch.logsumexp(h, (2, 3)),
    lambda h: h.norm(dim=(2, 3)),
    lambda h: torch.linalg.vector_norm(h, dim=(2, 3)),
    lambda h: h.prod(2),
    lambda h: h.sum(0),
    lambda h: h.mean(1),
    lambda h: h.sum((1, 2)),
    lambda h: h.sum(),
    lambda h: h.var(0, correction=1),
    lambda h: h.argmax(2).float(),
    lambda h: (h > 0.5).any(2).float(),
    lambda h: h.tril(),
    lambda h: h.triu(1),
    lambda h: h.diagonal(dim1=2, dim2=3),
    lambda h: h.diagonal(offset=1, dim1=1, dim2=2),
    lambda h: h.rot90(1, (2, 3)),
    lambda h: h.roll((1, 2), (1, 3)),
    lambda h: h.unfold(2, 2, 1),
    lambda h: F.unfold(h, 2),
    lambda h: F.pad(h, (1, -1, 0, 2)),
    lambda h: F.pad(h, (1, 1, 1, 1), value=2.0),
    lambda h: F.pad(h, (1, 1, 1, 1), mode="reflect"),
    lambda h: F.pad(h, (1, 1, 1, 1), mode="replicate"),
    lambda h: F.pad(h, (0, 0, 0, 0, 1, 1)),
    lambda h: h[:, torch.tensor([True, False, True, True])],
    lambda h: h[:, [3, -1, 0]],
    lambda h: h[:, :, torch.arange(4), torch.arange(4)],
    lambda h: h[torch.tensor([1, 0])],
    lambda h: h[..., None, ::2],
    lambda h: h.index_select(1, torch.tensor([2, 2, 0])),
    lambda h: h.gather(1, torch.zeros(2, 2, 4, 4, dtype=torch.int64)),
    lambda h: torch.take_along_dim(h, torch.ones(2, 1, 4, 4, dtype=torch.int64), 1),
    lambda h: h.repeat_interleave(2, 1),
    lambda h: h.repeat_interleave(torch.tensor([1, 2, 0, 1]), 1),
    lambda h: torch.stack(h.unbind(1)[::-1], 1),
    lambda h: torch.cat(h.chunk(2, 1)[::-1], 2),
    lambda h: F.pixel_shuffle(h, 2),
    lambda h: F.pixel_unshuffle(h, 2),
    lambda h: F.channel_shuffle(h, 2),
    lambda h: h.movedim(1, -1),
    lambda h: h.flatten(2).transpose(1, 2).reshape(2, -1, 8),
    lambda h: h.expand(2, 4, 4, 4).contiguous(memory_format=torch.channels_last),
    lambda h: h.squeeze().unsqueeze(1),
    lambda h: F.interpolate(h, scale_factor=2),
    lambda h: F.interpolate(h, size=(3, 5), mode="bilinear", antialias=True),
    lambda h: F.interpolate(h, size=(3, 5), mode="bicubic"),
    lambda h: F.avg_pool2d(h.transpose(1, 3), 2),
    lambda h: F.max_pool2d(h.flatten(1, 2), 2),
    lambda h: F.adaptive_avg_pool2d(h[:, :1], 1),
    lambda h: F.instance_norm(h),
    lambda h: F.batch_norm(h, None, None, training=True),
    lambda h: F.batch_norm(h.transpose(1, 2), None, None, training=True),
    lambda h: F.group_norm(h, 2),
    lambda h: F.normalize(h, dim=2),
    lambda h: F.normalize(h, dim=1),
    lambda h: h.cumsum(2),
    lambda h: h.softmax(3),
    lambda h: torch.where(h > 0.5, h, h.flip(1)),
    lambda h: torch.maximum(h, h.roll(1, 1)),
    lambda h: torch.lerp(h, h.detach(), 0.3),
    lambda h: h.masked_fill(h > 0.7, 0.0),
    lambda h: h.clone().fill_diagonal_(0.0) if h.dim() == 2 else h.clone().zero_() + h,
    lambda h: torch.einsum("bcij,ij->bc", h, torch.ones(4, 4)),
    lambda h: torch.tensordot(h, torch.ones(4, 3), 1),
    lambda h: h @ torch.ones(4, 2),
    lambda h: torch.stack([h, h.neg()]).amax(0),
    lambda h: h.topk(2, 1).values,
    lambda h: h.to(torch.float64).to(torch.float32),
    lambda h: h.to(torch.bfloat16).float(),
    lambda h: torch.complex(h, h).real,
    lambda h: torch.view_as_real(torch.complex(h, h.flip(1))).flatten(3),
    lambda h: torch.fft.rfft(h).abs(),
]


def _reading_all(change, finely):
    """A model whose units are changed in some way, all the result being read by one layer."""
    if finely:  # a unit for each element of one sample
        a = nn.Linear(6, 64)

        def body(m, x):
            return torch.sigmoid(m.a(x[:1])).view(1, 4, 4, 4).expand(2, 4, 4, 4)
    else:  # a unit for each channel
        a = nn.Conv2d(6, 4, 1)

        def body(m, x):
            return torch.sigmoid(m.a(x.unflatten(1, (6, 1, 1)).expand(-1, 6, 4, 4)))

    model = Net(lambda m, x: m.b(change(body(m, x)).reshape(1, -1)), a=a)
    with torch.no_grad():
        model.b = nn.Linear(change(body(model, torch.randn(2, 6))).numel(), 3)
    return model


@pytest.mark.parametrize("finely", [False, True], ids=["channels", "elements"])
def test_rearrangements(finely):
    """Whatever is done to units between their activation and their reader, no false claim is made about it."""
    private = 0
    for number, change in enumerate(_CHANGES):
        model, x = _reading_all(change, finely), torch.randn(2, 6)
        (group,) = units = find_units(model, x)
        private += group.private
        try:
            slow_private.check(model, units, [(x,)], training=(False,), effect=False)
        except AssertionError as error:
            raise AssertionError(f"rearrangement {number}") from error
    assert private >= (30 if finely else 40)
