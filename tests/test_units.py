"""What `find_units` says: the groups of known models, their tables, and errors in words."""

import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from cases import AVALANCHE, Net
from slow_statistics import Slow
from torch import nn

from plasticity import TraceError, UnitGroup, UnitGroups, UserError, find_units, watch


def case(name):
    (found,) = [case for case in AVALANCHE if case.name == name]
    return found.model(), found.inputs()[0]


def rows(units):
    """Everything the contract names, as text: name, size, producers, norm, activation, consumers, private."""
    return [
        f"{g.name} {g.size} {'+'.join(g.producers)} {g.norm} {g.activation} "
        f"{','.join(f'{layer}x{columns_per_unit}' for layer, columns_per_unit, *_ in g.consumers)} {g.private}"
        for g in units
    ]


# --- exact tables ----------------------------------------------------------------------------------------------------


def test_simple_mlp():
    assert rows(find_units(*case("SimpleMLP"))) == [
        "features.0 16 features.0 None relu features.3.0x1 True",
        "features.3.0 16 features.3.0 None relu features.4.0x1 True",
        "features.4.0 16 features.4.0 None relu classifierx1 True",
    ]


def test_simple_cnn():
    assert rows(find_units(*case("SimpleCNN"))) == [
        "features.0 32 features.0 None relu features.2x1 True",
        "features.2 32 features.2 None relu features.6x1 True",
        "features.6 64 features.6 None relu features.8x1 True",
        "features.8 64 features.8 None relu features.12x1 True",
        "features.12 64 features.12 None relu classifier.0x1 True",
    ]


SLIM = [
    "conv1 4 conv1 bn1 relu layer1.0.conv1x1 False",
    "layer1.0.conv1 4 layer1.0.conv1 layer1.0.bn1 relu layer1.0.conv2x1 True",
    "layer1.0.conv2 4 layer1.0.conv2 layer1.0.bn2 relu layer1.1.conv1x1 False",
    "layer1.1.conv1 4 layer1.1.conv1 layer1.1.bn1 relu layer1.1.conv2x1 True",
    "layer1.1.conv2 4 layer1.1.conv2 layer1.1.bn2 relu layer2.0.conv1x1,layer2.0.shortcut.0x1 False",
    "layer2.0.conv1 8 layer2.0.conv1 layer2.0.bn1 relu layer2.0.conv2x1 True",
    "layer2.0.conv2 8 layer2.0.conv2+layer2.0.shortcut.0 layer2.0.bn2 relu layer2.1.conv1x1 False",
    "layer2.1.conv1 8 layer2.1.conv1 layer2.1.bn1 relu layer2.1.conv2x1 True",
    "layer2.1.conv2 8 layer2.1.conv2 layer2.1.bn2 relu layer3.0.conv1x1,layer3.0.shortcut.0x1 False",
    "layer3.0.conv1 16 layer3.0.conv1 layer3.0.bn1 relu layer3.0.conv2x1 True",
    "layer3.0.conv2 16 layer3.0.conv2+layer3.0.shortcut.0 layer3.0.bn2 relu layer3.1.conv1x1 False",
    "layer3.1.conv1 16 layer3.1.conv1 layer3.1.bn1 relu layer3.1.conv2x1 True",
    "layer3.1.conv2 16 layer3.1.conv2 layer3.1.bn2 relu layer4.0.conv1x1,layer4.0.shortcut.0x1 False",
    "layer4.0.conv1 32 layer4.0.conv1 layer4.0.bn1 relu layer4.0.conv2x1 True",
    "layer4.0.conv2 32 layer4.0.conv2+layer4.0.shortcut.0 layer4.0.bn2 relu layer4.1.conv1x1 False",
    "layer4.1.conv1 32 layer4.1.conv1 layer4.1.bn1 relu layer4.1.conv2x1 True",
]
HEADS = ",".join(f"{{0}}.classifiers.{task}.classifierx1" for task in range(3))


def test_slim_resnet():
    units = find_units(*case("SlimResNet18"))
    assert rows(units) == [*SLIM, "layer4.1.conv2 32 layer4.1.conv2 layer4.1.bn2 relu linearx1 False"]
    assert units["layer2.0.conv2"].writes[1].norm == "layer2.0.shortcut.1"
    assert units["layer2.0.conv2"].reason == "it is added to `layer2.1.conv2` before the next activation"
    assert units.outputs == ("linear",)


def test_multi_task_models():
    units = find_units(*case("MTSlimResNet18"))
    last = f"layer4.1.conv2 32 layer4.1.conv2 layer4.1.bn2 relu {HEADS.format('linear')} False"
    assert rows(units) == [*SLIM, last]
    assert rows(find_units(*case("MTSimpleMLP"))) == [
        f"features.0 16 features.0 None relu {HEADS.format('classifier')} True"
    ]
    assert rows(find_units(*case("MTSimpleCNN")))[4:] == [
        f"features.12 64 features.12 None relu {HEADS.format('classifier')} True"
    ]
    assert rows(find_units(*case("as_multitask"))) == [
        "model.features.0 16 model.features.0 None relu model.features.3.0x1 True",
        f"model.features.3.0 16 model.features.3.0 None relu {HEADS.format('classifier')} True",
    ]
    assert rows(find_units(*case("IncrementalClassifier"))) == ["0 6 0 1 relu 4.classifierx36 True"]
    assert rows(find_units(*case("MultiHeadClassifier"))) == [f"body 12 body None tanh {HEADS.format('head')} True"]


def test_task_labels_of_any_kind():
    model, (x, _) = case("MTSimpleMLP")
    expected = rows(find_units(model, (x, torch.zeros(4, dtype=torch.int64))))
    for labels in (0, 2, torch.tensor([0, 1, 2, 0]), None):
        model.train()
        assert rows(find_units(model, (x, labels))) == expected


def test_vgg():
    from torchvision.models import vgg11_bn

    units = find_units(vgg11_bn(weights=None), torch.randn(1, 3, 32, 32))
    convolutions = [0, 4, 8, 11, 15, 18, 22, 25]
    sizes = [64, 128, 256, 256, 512, 512, 512, 512]
    following = [f"features.{i}x1" for i in convolutions[1:]] + ["classifier.0x49"]
    assert rows(units) == [
        *(
            f"features.{i} {size} features.{i} features.{i + 1} relu {reader} True"
            for i, size, reader in zip(convolutions, sizes, following, strict=True)
        ),
        "classifier.0 4096 classifier.0 None relu classifier.3x1 True",
        "classifier.3 4096 classifier.3 None relu classifier.6x1 True",
    ]
    columns = units["features.25"].readers[0].columns
    assert torch.equal(columns, torch.arange(512 * 49).view(512, 49))


@pytest.mark.parametrize(
    ("name", "groups", "private"),
    [
        ("resnet18", 17, r"layer\d.\d.conv1"),
        ("resnet50", 49, r"conv1|layer\d.\d.conv[12]"),
        ("densenet121", 120, r"features.denseblock\d.denselayer\d+.conv1|features.conv0"),
        ("convnext_tiny", 18, r"features.\d.\d.block.3"),
        ("mobilenet_v2", 35, r"features.*"),
    ],
)
def test_torchvision(name, groups, private):
    import torchvision

    units = find_units(getattr(torchvision.models, name)(weights=None), torch.randn(1, 3, 32, 32))
    assert len(units) == groups
    for group in units:
        assert group.private == bool(re.fullmatch(private, group.name)), f"{group.name}: {group.reason}"


def test_vision_transformer():
    from torchvision.models import vit_b_16

    units = find_units(vit_b_16(weights=None, image_size=32), torch.randn(1, 3, 32, 32))
    layers = [f"encoder.layers.encoder_layer_{i}.mlp" for i in range(12)]
    assert rows(units) == [f"{mlp}.0 3072 {mlp}.0 None gelu {mlp}.3x1 True" for mlp in layers]


def test_auxiliary_heads_that_do_not_run():
    """GoogLeNet reads with more layers in train mode; in eval mode they stand idle, and nothing is proven."""
    from torchvision.models import googlenet

    model = googlenet(weights=None, init_weights=False)
    x = torch.randn(2, 3, 32, 32)
    training = find_units(model.train(), x)
    assert all(group.private for group in training)
    evaluating = find_units(model.eval(), x)
    assert not any(group.private for group in evaluating)
    assert {group.reason for group in evaluating} == {"`aux1.conv.conv` is not used by this example and may read it"}
    assert training.outputs == evaluating.outputs == ("fc",)


# --- the contract ----------------------------------------------------------------------------------------------------


def conv_net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 5),
        nn.Linear(5, 2),
    )


def test_contract():
    model = conv_net()
    units = find_units(model, torch.randn(2, 3, 8, 8))
    assert isinstance(units, UnitGroups)
    assert [g.name for g in units] == ["0"]
    assert units["0"] is units[0] is next(iter(units))
    assert len(units) == 1
    assert "0" in units
    assert "5" not in units  # no activation before the next weights
    group = units["0"]
    assert (group.name, group.size, group.producers) == ("0", 4, ("0",))
    assert (group.norm, group.activation) == ("1", "relu")
    assert (group.private, group.reason) == (True, None)
    (consumer,) = group.consumers
    layer, columns_per_unit, columns = consumer
    assert (layer, columns_per_unit) == ("5", 9)
    assert torch.equal(columns, torch.arange(36).view(4, 9))
    assert columns.dtype == torch.int64
    (write,) = group.writes
    assert (write.layer, write.norm) == ("0", "1")
    assert write.rows.tolist() == write.norm_rows.tolist() == [0, 1, 2, 3]
    with pytest.raises(KeyError, match="no group '7'; there are: 0"):
        units["7"]
    with pytest.raises(TypeError, match="not by slice"):
        units[:1]


def test_one_group_for_each_activation():
    model = Net(
        lambda m, x: m.c(torch.relu(m.a(x)) + torch.tanh(m.a2(x)) + torch.relu(m.b(x) + m.b2(x))),
        a=nn.Linear(4, 5),
        a2=nn.Linear(4, 5),
        b=nn.Linear(4, 5),
        b2=nn.Linear(4, 5),
        c=nn.Linear(5, 2),
    )
    units = find_units(model, torch.randn(3, 4))
    assert [(g.name, g.producers, g.activation) for g in units] == [
        ("a", ("a",), "relu"),
        ("a2", ("a2",), "tanh"),
        ("b", ("b", "b2"), "relu"),
    ]
    assert all(g.reason == "`c` reads it combined with `a2`" for g in units if g.name == "a")


def test_the_table_says_what_it_must():
    text = str(find_units(*case("SlimResNet18")))
    lines = text.splitlines()
    assert lines[0].split() == ["group", "size", "writes", "norm", "activation", "reads", "private"]
    assert len(lines) == 18
    for part in ("layer2.0.conv1", "8", "layer2.0.bn1", "relu", "layer2.0.conv2 x1", "yes"):
        assert part in next(line for line in lines if line.startswith("layer2.0.conv1 "))
    for part in ("layer2.0.conv2 + layer2.0.shortcut.0", "no: it is added to `layer2.1.conv2` before the next"):
        assert part in next(line for line in lines if line.startswith("layer2.0.conv2 "))
    assert not any(line != line.rstrip() for line in lines)
    assert repr(find_units(*case("SlimResNet18"))) == text


def test_a_table_of_nothing():
    units = find_units(nn.Linear(3, 2), torch.randn(4, 3))
    assert str(units) == "no hidden units: no Linear or Conv layer is followed by an activation"


def test_groups_can_be_kept():
    model = conv_net()
    units = find_units(model, torch.randn(2, 3, 8, 8))
    again = pickle.loads(pickle.dumps(units))
    assert str(again) == str(units)
    x = torch.randn(2, 3, 8, 8)
    with watch(model, again) as activity:
        model(x)
    assert activity.statistics()["0"].count == 2 * 36


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_a_group_by_hand():
    group = UnitGroup("fc1", size=128, activation="relu", at="act1", consumers=[("fc2", 2)])
    assert (group.producers, group.norm, group.private, group.reason) == (("fc1",), None, True, None)
    assert torch.equal(group.consumers[0].columns, torch.arange(256).view(128, 2))
    assert group.writes[0].rows.tolist() == list(range(128))
    watched = UnitGroup("fc1", size=128, activation="relu", at="act1")
    assert (watched.private, watched.reason) == (False, "no consumers were declared")
    shared = UnitGroup("fc1", size=2, activation="relu", at="act1", consumers=[("fc2", 1)], private=False)
    assert (shared.private, shared.reason) == (False, "declared as not private")
    normed = UnitGroup("fc1", size=2, activation="relu", at="act1", norm="bn")
    assert normed.writes[0].norm == "bn"
    assert normed.writes[0].norm_rows.tolist() == [0, 1]
    summed = UnitGroup("fc1", size=2, activation="relu", at="act1", producers=("fc1", "skip"))
    assert [write.layer for write in summed.writes] == ["fc1", "skip"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0, "at": "act"}, "group 'fc': size must be at least 1, not 0"),
        ({"size": 3}, "group 'fc': say which module's output are its activations, with at="),
        ({"size": 3, "at": "act", "consumers": [("out", 0)]}, "'out' must read each unit through at least one column"),
    ],
)
def test_wrong_groups(arguments, message):
    with pytest.raises(UserError, match=message):
        UnitGroup("fc", activation="relu", **arguments)


def test_two_groups_of_one_name():
    group = UnitGroup("fc", size=3, activation="relu", at="act")
    with pytest.raises(UserError, match="two groups have the same name: fc"):
        UnitGroups([group, group])


# --- errors ----------------------------------------------------------------------------------------------------------


class Failing(nn.Module):
    def forward(self, x):
        return x.reshape(7, 7, 7)


def test_a_model_that_fails_is_named():
    model = nn.Sequential(nn.Linear(4, 5), nn.Sequential(nn.ReLU(), Failing()), nn.Linear(5, 2))
    with pytest.raises(TraceError) as caught:
        find_units(model, torch.randn(3, 4))
    message = str(caught.value)
    assert "RuntimeError in module '1.1' (Failing), in `view`: " in message
    assert "shape '[7, 7, 7]' is invalid" in message
    assert 'UnitGroup("fc1", size=128, activation="relu", at="act1", consumers=[("fc2", 1)])' in message
    assert "\n" not in message
    assert isinstance(caught.value, ValueError)
    # What the message shows works.
    model[1][1] = nn.Identity()
    x = torch.randn(3, 4)
    with watch(model, [UnitGroup("0", size=5, activation="relu", at="1.0", consumers=[("2", 1)])]) as activity:
        model(x)
    slow = Slow(5)
    slow.add(F.relu(model[0](x)), 1)
    slow.check(activity.statistics()["0"])


def test_wrong_examples():
    with pytest.raises(
        TraceError, match=r"in module '0' \(Linear\), in `addmm`: .*cannot be multiplied \(3x5 and 4x2\)"
    ):
        find_units(nn.Sequential(nn.Linear(4, 2)), torch.randn(3, 5))
    model, (x, _) = case("MTSimpleMLP")
    with pytest.raises(TraceError, match=r"task_labels.*pass all positional inputs .* as a tuple.*UnitGroup\("):
        find_units(model, x)
    with pytest.raises(TraceError, match=r"AttributeError in the model \(Net\), at its start"):
        find_units(Net(lambda m, x: m.nothing), torch.randn(3))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_is_refused():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)))
    with pytest.raises(TraceError, match=r"the model \(Sequential\) is TorchScript.*use the module it was made from$"):
        find_units(scripted, torch.randn(3, 4))
    around = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), scripted)
    with pytest.raises(TraceError, match=r"module '2' \(Sequential\) is TorchScript.*UnitGroup\("):
        find_units(around, torch.randn(3, 4))


def test_layers_without_weights_are_refused():
    model = nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.Linear(5, 2))
    with pytest.raises(TraceError, match=r"module '0' \(LazyLinear\) has no weights yet; run the model once before"):
        find_units(model, torch.randn(3, 4))
    model(torch.randn(3, 4))
    assert find_units(model, torch.randn(3, 4))["0"].private
