"""Plots of the report: vector pictures with their own light ground, readable on a phone and in dark surroundings."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.comparison.results import Run
from benchmarks.comparison.statistics import student_half_width

SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": "#8a8a8a",
    "axes.labelcolor": "#333333",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "text.parse_math": False,  # a name with dollar signs is a name
    "svg.hashsalt": "plasticity",  # the same runs give the same page
}
LINED_LAYERS = 6
"""Networks with more groups of units than this are drawn as a map instead of lines."""


@dataclass(frozen=True)
class Picture:
    """A picture to put into a page.

    Attributes:
        source: data URI.
        alternative: what it shows, for those who do not see it.
    """

    source: str
    alternative: str


@dataclass(frozen=True)
class Style:
    """How a strategy is drawn, the same in every plot.

    Attributes:
        color: hexadecimal.
        dash: Matplotlib's line style.
        marker: Matplotlib's marker.
    """

    color: str
    dash: str
    marker: str


COLORS = ("#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b3294")
DASHES = ("-", "-.", "--", ":")
MARKERS = ("s", "^", "D", "v", "P", "X", "*")


def styles(strategies: Sequence[str]) -> dict[str, Style]:
    """Gives each strategy its colour (of Okabe and Ito's set for colour-blind readers), dashes and marker.

    Args:
        strategies: all strategies of a page.

    Returns:
        A style by strategy; naive and fresh always have the same.
    """
    chosen = {"naive": Style("#d55e00", "-", "o"), "fresh": Style("#4d4d4d", "--", "o")}
    others = [name for name in strategies if name not in chosen]
    for index, name in enumerate(others):  # the three repeat at different periods, so that no two strategies look alike
        color, dash, marker = (kinds[index % len(kinds)] for kinds in (COLORS, DASHES, MARKERS))
        chosen[name] = Style(color, dash, marker)
    return chosen


def learning_curves(strategies: Mapping[str, Sequence[Run]], style: Mapping[str, Style]) -> tuple[Picture, int]:
    """Accuracy on each experience just after learning it: mean and 95% interval over seeds.

    Args:
        strategies: the runs by strategy.
        style: how to draw each.

    Returns:
        The picture, and over how many experiences each seed's curve is averaged (1 for short streams).
    """
    with rc_context(SETTINGS):
        figure = Figure(figsize=(5.4, 4.3), layout="constrained")
        axes = figure.add_subplot()
        window = 1
        ends = []
        for index, (name, runs) in enumerate(strategies.items()):
            curves = np.stack([run.learning_accuracy for run in runs])
            window = 2 * (curves.shape[1] // 40) + 1
            curves = np.stack([running_mean(curve, window) for curve in curves])
            mean, steps = curves.mean(axis=0), np.arange(1, curves.shape[1] + 1)
            line, every = style[name], _every(len(mean))
            marked = (index * every // len(strategies), every)  # staggered, so that lines that coincide both show
            axes.plot(steps, mean, line.dash, color=line.color, marker=line.marker, markevery=marked, label=name)
            if len(curves) > 1:
                half = student_half_width(curves)
                low, high = np.clip(mean - half, 0, 1), np.clip(mean + half, 0, 1)
                axes.fill_between(steps, low, high, color=line.color, alpha=0.15, linewidth=0)
            ends.append(f"{name} from {mean[0]:.2f} to {mean[-1]:.2f}")
        _experiences(axes, len(steps))
        axes.set_ylabel("test accuracy just after learning")
        figure.legend(loc="outside lower center", ncols=2 if len(strategies) > 1 else 1)
        text = "Test accuracy just after learning, by experience: " + "; ".join(ends)
        return _picture(figure, text), window


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over the neighbours of each entry, over fewer at both ends.

    Args:
        values: shape (T,).
        window: odd, how many entries to average.

    Returns:
        Shape (T,).
    """
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def dead_units(runs: Sequence[Run], style: Style) -> Picture:
    """Dead units of each layer after each experience, and of the whole network: mean over seeds.

    Args:
        runs: the runs of one strategy.
        style: how to draw the whole network.

    Returns:
        The picture: lines for few layers, else a map.
    """
    layers = list(dict.fromkeys(name for run in runs for entry in run.units for name in entry["layers"]))
    whole = np.mean([[entry["dead_fraction"] for entry in run.units] for run in runs], axis=0)
    fractions = {layer: _mean_over_seeds(runs, layer) for layer in layers}
    steps = np.arange(1, len(whole) + 1)
    height = 3.5 if len(layers) <= LINED_LAYERS else max(3.5, 1 + 0.15 * len(layers))
    with rc_context(SETTINGS):
        figure = Figure(figsize=(4.2, height), layout="constrained")
        axes = figure.add_subplot()
        if len(layers) > LINED_LAYERS:
            table = np.stack([*fractions.values(), whole])
            image = axes.imshow(table, aspect="auto", vmin=0, vmax=1, cmap="cividis", interpolation="nearest")
            image.set_extent((0.5, len(whole) + 0.5, len(table) - 0.5, -0.5))
            axes.set_yticks(range(len(table)), [*(_short(layer) for layer in layers), "whole network"], fontsize=6.5)
            axes.axhline(len(layers) - 0.5, color="white", lw=3)
            axes.grid(False)
            figure.colorbar(image, ax=axes, label="share of dead units", shrink=0.9)
        else:
            shades = colormaps["cividis"](np.linspace(0.15, 0.8, max(len(layers), 1)))
            for index, (layer, values) in enumerate(fractions.items()):
                dash, marker = DASHES[index % len(DASHES)], MARKERS[index]
                axes.plot(
                    steps, values, dash, color=shades[index], lw=1.2, marker=marker, ms=3.5,
                    markevery=_every(len(steps)), label=_short(layer),
                )  # fmt: skip
            axes.plot(steps, whole, "-", color=style.color, lw=4, zorder=1.5, label="whole network")  # under the layers
            axes.set_ylim(-0.02, 1.02)
            axes.set_ylabel("share of dead units")
            figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)
        _experiences(axes, len(steps))
        text = (
            f"Dead units by layer after each experience, {runs[0].strategy}: over the whole network from "
            f"{whole[0]:.2f} to {whole[-1]:.2f}"
        )
        text += "".join(f"; {layer} ends at {values[-1]:.2f}" for layer, values in fractions.items())
        return _picture(figure, text)


def accuracy_matrix(runs: Sequence[Run]) -> Picture:
    """Test accuracy on every experience after every experience: mean over seeds.

    Args:
        runs: the runs of one strategy.

    Returns:
        The picture, with numbers in it for up to ten experiences.
    """
    mean = np.mean([run.accuracy_matrix for run in runs], axis=0)
    size = len(mean)
    with rc_context(SETTINGS):
        figure = Figure(figsize=(4.2, 3.5), layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(mean, vmin=0, vmax=1, cmap="cividis", interpolation="nearest")
        image.set_extent((0.5, size + 0.5, size + 0.5, 0.5))
        axes.set_facecolor("#ececec")
        axes.grid(False)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, min_n_ticks=1))
        axes.set_ylabel("after training on experience")
        _experiences(axes, size, "tested on experience")
        figure.colorbar(image, ax=axes, label="test accuracy", shrink=0.9)
        if size <= 10:
            for i, j in np.argwhere(~np.isnan(mean)):
                axes.text(
                    j + 1, i + 1, f"{mean[i, j]:.2f}", ha="center", va="center", fontsize=9 - size / 3,
                    color="white" if mean[i, j] < 0.55 else "black",
                )  # fmt: skip
        text = (
            f"Accuracy matrix, {runs[0].strategy}: test accuracy on each experience after training on each; just after "
            f"learning {mean.diagonal().mean():.2f} on average, at the end of the stream {mean[-1].mean():.2f}"
        )
        return _picture(figure, text)


def _mean_over_seeds(runs: Sequence[Run], layer: str) -> np.ndarray:
    # A layer may appear late in a growing network; before that it has no value.
    values = [[entry["layers"].get(layer, {}).get("dead", np.nan) for entry in run.units] for run in runs]
    return np.mean(values, axis=0)


def _every(count: int) -> int:
    return max(1, count // 10)


def _experiences(axes: Axes, count: int, label: str = "experience") -> None:
    axes.set_xlabel(label)
    axes.set_xlim(0.5, count + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, min_n_ticks=1))


def _short(layer: str) -> str:
    return layer if len(layer) <= 20 else "…" + layer[-19:]


def _picture(figure: Figure, alternative: str) -> Picture:
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return Picture("data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode(), alternative + ".")
