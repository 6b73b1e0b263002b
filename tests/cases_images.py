"""Hand-written models of images and signals, each with what is private in it."""

import torch
import torch.nn.functional as F
from cases import Case, Net, randn
from torch import nn

IMAGE = (3, 3, 8, 8)


def pre_activation(m, x):
    x = m.stem(x)
    for block in ("one", "two"):
        h = getattr(m, f"{block}a")(F.relu(getattr(m, f"{block}n")(x)))
        x = x + getattr(m, f"{block}b")(F.relu(h))
    return m.head(F.relu(x).mean((2, 3)))


def dense(m, x):
    features = [F.relu(m.a(x))]
    features.append(F.relu(m.b(features[0])))
    features.append(F.relu(m.c(torch.cat(features, 1))))
    return m.d(torch.cat(features, 1).mean((2, 3)))


def channel_shuffle(m, x):
    h = F.relu(m.a(x))
    n, c, height, width = h.shape
    return m.b(h.view(n, 2, c // 2, height, width).transpose(1, 2).reshape(n, c, height, width)).flatten(1)


def squeeze_excite(m, x):
    h = F.relu(m.a(x))
    gate = torch.sigmoid(m.up(F.relu(m.down(h.mean((2, 3))))))
    return m.b(h * gate[:, :, None, None]).flatten(1)


IMAGES = [
    Case(name, build, randn(*IMAGE, batches=2), private, watched)
    for name, build, private, watched in [
        (
            "flatten",
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)),
            "0",
            "",
        ),
        (
            "flatten before the activation",
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.ReLU(), nn.Linear(144, 2)),
            "0",
            "",
        ),
        (
            "channel-last flatten",
            lambda: Net(
                lambda m, x: m.b(F.relu(m.a(x)).permute(0, 2, 3, 1).flatten(1)),
                a=nn.Conv2d(3, 4, 3),
                b=nn.Linear(144, 2),
            ),
            "a",
            "",
        ),
        (
            "channels_last memory",
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 2)).to(
                memory_format=torch.channels_last
            ),
            "0",
            "",
        ),
        (
            "grouped and depthwise readers",
            lambda: nn.Sequential(
                nn.Conv2d(3, 8, 3),
                nn.ReLU(),
                nn.Conv2d(8, 12, 3, groups=4),
                nn.ReLU(),
                nn.Conv2d(12, 24, 3, groups=12),
                nn.ReLU(),
                nn.Conv2d(24, 2, 1),
            ),
            "0 2 4",
            "",
        ),
        (
            "pools of all kinds",
            lambda: nn.Sequential(
                *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 1, ceil_mode=True), nn.AvgPool2d(3, 1, 1)),
                *(nn.Conv2d(4, 5, 1), nn.ELU(), nn.LPPool2d(2, 2), nn.AdaptiveAvgPool2d(2), nn.Conv2d(5, 6, 1)),
                *(nn.Tanh(), nn.AdaptiveMaxPool2d((2, 1)), nn.FractionalMaxPool2d(1, output_size=1), nn.Flatten()),
                nn.Linear(6, 2),
            ),
            "0 4 8",
            "",
        ),
        (
            "interpolation",
            lambda: Net(
                lambda m, x: m.d(
                    torch.cat(
                        [
                            F.interpolate(F.relu(m.a(x)), scale_factor=2),
                            F.interpolate(F.relu(m.b(x)), scale_factor=2, mode="bilinear"),
                            F.interpolate(F.relu(m.c(x)), size=12, mode="nearest-exact"),
                        ],
                        1,
                    )
                ),
                a=nn.Conv2d(3, 4, 3),
                b=nn.Conv2d(3, 5, 3),
                c=nn.Conv2d(3, 6, 3),
                d=nn.Conv2d(15, 2, 1),
            ),
            "a b c",
            "",
        ),
        (
            "padding",
            lambda: nn.Sequential(
                nn.Conv2d(3, 4, 3),
                nn.ReLU(),
                nn.ZeroPad2d(1),
                nn.ReflectionPad2d(1),
                nn.ConstantPad2d((1, -1, 0, 2), 3.0),
                nn.ReplicationPad2d(2),
                nn.Conv2d(4, 5, 3, padding="same", padding_mode="reflect"),
                nn.ReLU(),
                nn.Conv2d(5, 2, 3, padding="same"),
            ),
            "0 6",
            "",
        ),
        (
            "circular padding",
            lambda: nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular")
            ),
            "",
            "0",
        ),
        (
            "a channel of padding",
            lambda: Net(
                lambda m, x: m.b(F.pad(F.relu(m.a(x)), (0, 0, 0, 0, 2, 1))),
                a=nn.Conv2d(3, 4, 3),
                b=nn.Conv2d(7, 2, 1),
            ),
            "a",
            "",
        ),
        (
            "pixel shuffle",
            lambda: nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.ReLU(), nn.PixelUnshuffle(2), nn.Conv2d(32, 8, 1), nn.ReLU(), nn.PixelShuffle(2)
            ),
            "0",
            "3",
        ),
        (
            "pixel shuffle before a reader",
            lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.PixelShuffle(2), nn.Conv2d(2, 3, 1)),
            "",
            "0",
        ),
        (
            "transposed convolution",
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3), nn.ReLU()),
            "",
            "0",
        ),
        (
            "group norms",
            lambda: nn.Sequential(
                *(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.InstanceNorm2d(6)),
                *(nn.ReLU(), nn.Conv2d(6, 4, 1), nn.InstanceNorm2d(4, affine=True), nn.ReLU(), nn.Conv2d(4, 2, 1)),
            ),
            "3 6",
            "0",
        ),
        (
            "local response norm",
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.LocalResponseNorm(2), nn.Conv2d(4, 2, 1)),
            "",
            "0",
        ),
        (
            "squeeze and excite",
            lambda: Net(
                squeeze_excite, a=nn.Conv2d(3, 8, 3), down=nn.Linear(8, 4), up=nn.Linear(4, 8), b=nn.Conv2d(8, 2, 1)
            ),
            "down",
            "a up",
        ),
        ("channel shuffle", lambda: Net(channel_shuffle, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 2, 3)), "a", ""),
        (
            "dense net",
            lambda: Net(dense, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 5, 1), c=nn.Conv2d(9, 6, 1), d=nn.Linear(15, 2)),
            "a b c",
            "",
        ),
        (
            "pre-activation residual net",
            lambda: Net(
                pre_activation,
                stem=nn.Conv2d(3, 4, 3),
                onen=nn.BatchNorm2d(4),
                onea=nn.Conv2d(4, 5, 1),
                oneb=nn.Conv2d(5, 4, 1),
                twon=nn.BatchNorm2d(4),
                twoa=nn.Conv2d(4, 6, 1),
                twob=nn.Conv2d(6, 4, 1),
                head=nn.Linear(4, 2),
            ),
            "onea twoa",
            "stem stem#2 stem#3",
        ),
        (
            "unfold",
            lambda: Net(
                lambda m, x: m.b(F.unfold(F.relu(m.a(x)), 2).transpose(1, 2)), a=nn.Conv2d(3, 4, 3), b=nn.Linear(16, 2)
            ),
            "a",
            "",
        ),
        ("1x1 images", lambda: nn.Sequential(nn.Conv2d(3, 4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)), "0", ""),
    ]
]

SIGNALS = [
    Case(
        "Conv1d",
        lambda: nn.Sequential(
            *(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(4, 6, 2, groups=2)),
            *(nn.GELU(), nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(12, 2)),
        ),
        randn(3, 3, 16),
        "0 4",
        "",
    ),
    Case(
        "Conv3d",
        lambda: nn.Sequential(
            *(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(3, 4, 1)),
            *(nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2)),
        ),
        randn(2, 2, 5, 5, 5),
        "0 4",
        "",
    ),
    Case(
        "an unbatched image",
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(0), nn.Unflatten(0, (1, 36))
        ).append(nn.Linear(36, 2)),
        randn(3, 8, 8),
        "0",
        "",
    ),
    Case(
        "Embedding",
        lambda: nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 8), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)),
        lambda: [(torch.randint(10, (4, 3)),)],
        "1",
        "",
    ),
    Case("no hidden units", lambda: nn.Linear(3, 2), randn(4, 3), "", ""),
]
