"""Where hyper- and hypo-units matter: pruned or adapted first, by four saliencies, when the domain of the data shifts.

A network learns one domain with labels and meets others. It stays as it is, or it is pruned and stays, or it adapts:
with labels, with labels after the chosen units have learned from the network's own predictions, or without any. Chosen
units are the most salient ones, the least salient, both, or, as a control, as many at random. What counts is accuracy
in the new domain, against the whole network in the same situation and against the random choice.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.comparison.statistics import Interval, excludes_zero
from benchmarks.studies.study import Asked, Finished, Report, Study, StudyRun, over_seeds, study_run
from benchmarks.studies.tables import Column, number, written

SALIENCIES = ("frequency", "mean_abs", "std", "entropy")
ENDS = ("hyper", "hypo", "both")
BENCHMARKS = ("digits-turned", "digits-faint", "digits-noisy", "digits-moved")
FULL_BENCHMARKS = (*BENCHMARKS, "cifar10-corruptions")
PERCENT = 5


@dataclass(frozen=True)
class Situation:
    """What may be done in the new domain.

    Args:
        title: In the table.
        whole: Strategy that does it to the whole network.
        chosen: Strategy that begins with chosen units; further options follow.
        after: Strategies that it is combined with.
    """

    title: str
    whole: str
    chosen: str
    after: str = ""


SITUATIONS = (
    Situation("prune, no training", "naive+hold", "hyper-hypo:mode=prune", "+hold"),
    Situation("adapt, with labels", "naive", "hyper-hypo"),
    Situation("adapt, labels later", "naive", "hyper-hypo:self_label=true"),
    Situation("adapt, no labels", "hyper-hypo:percent=0:self_label=all", "hyper-hypo:self_label=all"),
)


@dataclass(frozen=True)
class Choice:
    """A situation and a choice of units, in one stream.

    Args:
        benchmark: Name of the stream.
        situation: What is done.
        units: One of `ENDS`, "random", or "whole" for the whole network.
        saliency: One of `SALIENCIES`, or "–" where it makes no difference.
        runs: One a seed.
    """

    benchmark: str
    situation: Situation
    units: str
    saliency: str
    runs: tuple[StudyRun, ...]


def choices(asked: Asked) -> list[Choice]:
    """Return all choices; the whole network first, then the random control, in every situation."""
    found = []
    for benchmark in FULL_BENCHMARKS if asked.full else BENCHMARKS:
        for situation in SITUATIONS:
            pairs = [("whole", "–"), ("random", "–"), *((units, kind) for kind in SALIENCIES for units in ENDS)]
            for units, kind in pairs:
                strategy = _strategy(situation, units, kind)
                runs = tuple(study_run(asked, "", benchmark, strategy, seed) for seed in range(asked.seeds))
                found.append(Choice(benchmark, situation, units, kind, runs))
    return found


def _strategy(situation: Situation, units: str, saliency: str) -> str:
    if units == "whole":
        return situation.whole
    chosen = f":saliency={saliency}" if units != "random" else ""
    return f"{situation.chosen}:percent={PERCENT}:units={units}{chosen}{situation.after}"


def runs(asked: Asked) -> list[StudyRun]:
    """Declare the runs."""
    return [run for choice in choices(asked) for run in choice.runs]


# --- what came out ---------------------------------------------------------------------------------------------


def new_domain_accuracy(result: dict[str, Any]) -> float:
    """Mean test accuracy in every domain but the first, each just after the network has met it."""
    return float(np.mean(result["learning_accuracy"][1:]))


@dataclass(frozen=True)
class Outcome:
    """What a choice gives, on average over streams, or in one of them.

    Args:
        choice: One of its choices.
        benchmark: Name of the stream, or "all".
        accuracy: In the new domain.
        over_whole: Its difference from the whole network in the same situation, on the same seeds.
        over_random: Its difference from the random choice.
        diverged: How many runs have, as `Finished.diverged` says it.
    """

    choice: Choice
    benchmark: str
    accuracy: Interval
    over_whole: Interval | None
    over_random: Interval | None
    diverged: dict[str, int]


def outcomes(found: Iterable[Choice], finished: Finished, benchmark: str) -> list[Outcome]:
    """Compare all choices of some streams.

    Args:
        found: The choices; streams are averaged, seed by seed.
        finished: The runs.
        benchmark: What the streams are called together.
    """
    grouped: dict[tuple[str, str, str], list[Choice]] = {}
    for choice in found:
        grouped.setdefault((choice.situation.title, choice.units, choice.saliency), []).append(choice)
    accuracy = {
        key: np.mean([[new_domain_accuracy(finished[run]) for run in choice.runs] for choice in some], axis=0)
        for key, some in grouped.items()
    }
    compared = []
    for (title, units, saliency), some in grouped.items():
        values = accuracy[title, units, saliency]
        whole, random = (accuracy[title, control, "–"] for control in ("whole", "random"))
        compared.append(
            Outcome(
                some[0],
                benchmark,
                over_seeds(values),
                None if units == "whole" else over_seeds(values - whole),
                None if units in ("whole", "random") else over_seeds(values - random),
                finished.diverged(run for choice in some for run in choice.runs),
            )
        )
    return compared


def report(asked: Asked, finished: Finished) -> Report:
    """Turn finished runs into one row a stream and choice, a shorter table over all streams, and a finding."""
    found = choices(asked)
    streams = list(dict.fromkeys(choice.benchmark for choice in found))
    single = [each for name in streams for each in outcomes([c for c in found if c.benchmark == name], finished, name)]
    together = outcomes(found, finished, "all")
    return Report([_row(each) for each in single], _finding(together, single), [_row(each) for each in together])


def _row(each: Outcome) -> dict[str, Any]:
    return {
        "benchmark": each.benchmark,
        "situation": each.choice.situation.title,
        "units": each.choice.units,
        "saliency": each.choice.saliency,
        "accuracy": each.accuracy,
        "over_whole": each.over_whole,
        "over_random": each.over_random,
        **each.diverged,
    }


def _finding(together: list[Outcome], single: list[Outcome]) -> str:
    whole = {each.choice.situation.title: each for each in together if each.choice.units == "whole"}
    levels = [
        f"{written(whole[title].accuracy)} {words}"
        for title, words in (
            ("prune, no training", "as it is"),
            ("adapt, no labels", "after learning from its own predictions"),
            ("adapt, with labels", "after learning with labels"),
        )
    ]
    sentences = [f"In a new domain the whole network is right in a share of {', '.join(levels)}."]
    for situation in SITUATIONS:
        some = [each for each in together if each.choice.situation == situation and each.choice.units in ENDS]
        sentences.append(f"{situation.title.capitalize()}: {_verdict(some)}.")
    chosen = [each for each in single if each.choice.units in ENDS]
    clear = [each for each in chosen if _above(each.over_whole) and _above(each.over_random)]
    if clear:
        best = max(clear, key=lambda each: each.over_whole["mean"])  # type: ignore[index,arg-type,return-value]
        choice = best.choice
        sentences.append(
            f"Stream by stream, {len(clear)} of {len(chosen)} choices are better than both the whole network and the "
            f"random choice, most clearly {choice.situation.title} with {choice.units} units by {choice.saliency} on "
            f"{best.benchmark}: {written(best.over_whole, 3, sign=True)} over the whole network and "  # type: ignore[arg-type]
            f"{written(best.over_random, 3, sign=True)} over the random choice."  # type: ignore[arg-type]
        )
    else:
        sentences.append(
            f"Stream by stream, none of {len(chosen)} choices is better than both the whole network and the random one."
        )
    return " ".join(sentences)


def _above(interval: Interval | None) -> bool:
    return interval is not None and excludes_zero(interval) and (interval["mean"] or 0) > 0


def _verdict(some: list[Outcome]) -> str:
    """Say how many choices of units are better or worse than the whole network, and than as many units at random."""
    parts = []
    for name, title in (("over_whole", "the whole network"), ("over_random", "a random choice")):
        found: list[Interval] = [getattr(each, name) for each in some]
        better = sum(_above(interval) for interval in found)
        worse = sum(excludes_zero(interval) for interval in found) - better
        best = max(found, key=lambda interval: interval["mean"] or 0.0)
        parts.append(
            f"of {len(some)} choices {better} are better and {worse} worse than {title} (best "
            f"{written(best, 3, sign=True)}; {number(0.025 * len(some), 1)} each way come by chance)"
        )
    return "; ".join(parts)


STUDY = Study(
    name="hyper-hypo",
    question="Does it help in a new domain to prune hyper- and hypo-active units, or to let them adapt first?",
    source="the claim of Mitra and Franco 2020, arXiv 2001.01755, on images in place of speech",
    columns=(
        Column("benchmark", "stream"),
        Column("situation", "what is done"),
        Column("units", "units"),
        Column("saliency", "saliency"),
        Column("accuracy", "accuracy in\nnew domains"),
        Column("over_whole", "over the whole\nnetwork", "difference on the same seeds, in the same situation"),
        Column("over_random", "over a random\nchoice", "likewise, of as many units"),
    ),
    summary_columns=(
        Column("situation", "what is done"),
        Column("units", "units"),
        Column("saliency", "saliency"),
        Column("accuracy", "accuracy in\nnew domains", "averaged over streams"),
        Column("over_whole", "over the whole\nnetwork", "difference on the same seeds, in the same situation"),
        Column("over_random", "over a random\nchoice", "likewise, of as many units"),
    ),
    seeds=5,
    full_seeds=5,
    runs=runs,
    report=report,
    modules=("benchmarks.studies.holding", "benchmarks.studies.shifted_digits"),
)
