"""What the numbers of one benchmark say in plain words, and only as much as their intervals support."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.comparison.differences import Difference, Standing, paired_difference, standing
from benchmarks.comparison.measures import late_experiences
from benchmarks.comparison.results import REFERENCES, Run
from benchmarks.comparison.rows import recovery
from benchmarks.comparison.seeds import Values, by_seed
from benchmarks.comparison.statistics import Interval, student_interval
from benchmarks.comparison.wording import DIVERGED, plain_number

NAMED = 5
"""How many strategies a sentence names, at most, before it counts the others."""

Amount = Callable[[str], str]
"""What to say of a strategy, such as "89% [86, 94]"."""


@dataclass(frozen=True)
class Topic:
    """Some sentences on one question.

    Attributes:
        title: what they are about.
        sentences: what is to be said.
    """

    title: str
    sentences: list[str]


def summary(strategies: Mapping[str, Sequence[Run]]) -> list[Topic]:
    """Plain sentences about one benchmark.

    A difference is claimed only where the 95% interval of the paired differences over seeds leaves zero out. Strategies
    are put into an order only as far as such intervals do; what the seeds cannot tell is said to be unclear.

    Args:
        strategies: the runs by strategy.

    Returns:
        One topic each: runs that have diverged, where there are any; plasticity; forgetting and hidden units, where
        there is something to compare.
    """
    late, forgetting, dead = (
        {name: by_seed(runs, measure) for name, runs in strategies.items()}
        for measure in ("late_learning_accuracy", "forgetting", "dead_fraction")
    )
    run = next(iter(strategies.values()))[0]
    topics = [Topic("Diverged runs", told)] if (told := _diverged(strategies)) else []
    topics.append(Topic("Plasticity", _plasticity(late, _last(run))))
    if len(forgetting.get("naive", {})) > 1:
        topics.append(Topic("Forgetting", _forgetting(forgetting)))
    if len(dead.get("naive", {})) > 1:
        topics.append(Topic("Hidden units", _dead_units(dead, late)))
    return topics


def paragraphs(strategies: Mapping[str, Sequence[Run]]) -> list[str]:
    """The summary as plain text: one paragraph for each topic, which it begins with."""
    return [f"{topic.title}: {' '.join(topic.sentences)}" for topic in summary(strategies)]


def _diverged(strategies: Mapping[str, Sequence[Run]]) -> list[str]:
    found = {name: [r.diverged for r in runs if r.diverged is not None] for name, runs in strategies.items()}
    told = [
        f"{len(when)} of {len(strategies[name])} runs of {name} diverged, the first after experience {min(when)}."
        for name, when in found.items()
        if when
    ]
    return [*told, DIVERGED] if told else []


def _last(run: Run) -> str:
    count = len(run.scored)
    last = late_experiences(count)
    stretch = f"the last {last} of {count} experiences" if last > 1 else "the last experience"
    return stretch if count == len(run.units) else f"{stretch} that {'are' if last > 1 else 'is'} scored"


def _plasticity(late: Mapping[str, Values], stretch: str) -> list[str]:
    naive, fresh = late.get("naive", {}), late.get("fresh", {})
    if not naive:
        return ["There are no runs of naive, with which strategies are compared."]
    if len(naive) == 1:
        told = ", ".join(f"{name} to {value:.3f}" for name, (value,) in _single(late))
        return [
            "One seed only: there are no intervals, and any difference may be chance.",
            f"In it the networks learned {stretch} to these accuracies: {told}.",
        ]
    loss = paired_difference(fresh, naive)
    found = standing(late, "naive", leave_out=("fresh",))
    if loss.mean is None:
        opening = "How much plasticity naive loses is not known: that takes fresh on the same seeds."
    elif loss.seeds == 1:
        opening = "How much plasticity naive loses is not known: fresh and naive share one seed only."
    elif loss.sign == 0:
        opening = (
            f"No loss of plasticity is shown: on {stretch} naive and fresh cannot be told apart with {_seeds([loss])} "
            f"(naive − fresh: {_points(_opposite(loss.interval))})."
        )
    elif loss.sign < 0:
        opening = (
            f"naive loses no plasticity: it learns {stretch} {_points(_opposite(loss.interval))} better than fresh."
        )
    else:
        means = [np.mean([values[seed] for seed in naive.keys() & fresh.keys()]) for values in (naive, fresh)]
        opening = (
            f"naive loses {_points(loss.interval)} by {stretch}: it learns them to {means[0]:.3f}, and fresh networks "
            f"with the same budget to {means[1]:.3f}."
        )
        return [opening, *_recoveries(found, late)]

    def better(name: str) -> str:
        return _points(found.differences[name].interval)

    return [opening, *_ordered(found, "{} learns " + stretch + " {} better than naive", better)]


def _single(late: Mapping[str, Values]) -> list[tuple[str, list[float]]]:
    (seed,) = late["naive"]
    values = {name: [values[seed]] for name, values in late.items() if seed in values}
    if len(values) > NAMED + len(REFERENCES):
        values = {name: value for name, value in values.items() if name in REFERENCES}
    return list(values.items())


def _recoveries(found: Standing, late: Mapping[str, Values]) -> list[str]:
    def recovered(name: str) -> str:
        interval = recovery(late[name], late["naive"], late["fresh"])
        if interval["low"] is None:  # too few seeds for the ratio
            return _points(found.differences[name].interval)
        return _hundredths(interval, "%", 0)

    return _ordered(found, "{} recovers {} of that loss", recovered)


def _ordered(found: Standing, says: str, amount: Amount) -> list[str]:
    """Sentences on who does better than naive, in an order only where one is shown."""
    sentences = []
    if found.above:
        first = found.above[0]
        opening = says.format(first, amount(first))
        tied = [name for name in found.above if name in found.with_first]
        others = [name for name in found.above[1:] if name not in tied]
        if not found.with_first and len(found.differences) > 1:
            sentences.append(f"{opening}, more than any other strategy here.")
        else:
            sentences.append(f"{opening}.")
        if tied:
            seeds = _seeds(found.with_first[name] for name in tied)
            these = "this" if len(tied) == 1 else "these"
            sentences.append(f"With {seeds} {these} cannot be told apart from it: {_named(tied, amount)}.")
        if others:
            sentences.append(f"Better than naive, but less so than {first}: {_named(others, amount)}.")
    if found.below:
        sentences.append(f"Worse than naive: {_named(found.below, amount)}.")
    return [*sentences, *_unclear(found, "{} cannot be told apart from naive with {}.")]


def _unclear(found: Standing, says: str) -> list[str]:
    if not found.unclear:
        return []
    return [says.format(_listed(found.unclear), _seeds(found.differences[name] for name in found.unclear))]


def _forgetting(values: Mapping[str, Values]) -> list[str]:
    found = standing(values, "naive", leave_out=("fresh",))
    own = _points(student_interval(np.array(list(values["naive"].values()))))
    sentences = [f"At the end naive has forgotten {own} of the best accuracy it had on earlier experiences."]
    if found.unclear and not found.above and not found.below:
        seeds = _seeds(found.differences.values())
        changes = _named(found.unclear, lambda name: _signed(found.differences[name].interval))
        return [*sentences, f"No difference in forgetting from naive is shown with {seeds}: {changes}."]
    return [
        *sentences,
        *_more_and_less(found, "Forget more than naive", "Forget less than naive"),
        *_unclear(found, "The forgetting of {} cannot be told apart from naive’s with {}."),
    ]


def _more_and_less(found: Standing, more: str, less: str) -> list[str]:
    def amount(name: str) -> str:
        interval = found.differences[name].interval
        return "by " + _points(interval if name in found.above else _opposite(interval))

    return [f"{says}: {_named(names, amount)}." for says, names in ((more, found.above), (less, found.below)) if names]


def _dead_units(dead: Mapping[str, Values], late: Mapping[str, Values]) -> list[str]:
    found = standing(dead, "naive")
    share = student_interval(np.array(list(dead["naive"].values())))
    own = _hundredths({key: None if value is None else min(max(value, 0), 1) for key, value in share.items()}, "%")
    sentences = [
        f"At the end of the stream {own} of naive’s hidden units are dead.",
        *_more_and_less(found, "More dead units than naive", "Fewer dead units than naive"),
        *_unclear(found, "The number of dead units of {} cannot be told apart from naive’s with {}."),
    ]
    learning = standing(late, "naive", leave_out=("fresh",))
    misleading = [name for name in found.below if name in learning.unclear or name in learning.below]
    if misleading:
        sentences.append(
            "Dead units alone mislead: fewer of them than naive, and yet no better learning late in the stream is "
            f"shown for {_listed(misleading)}."
        )
    return sentences


def _seeds(differences: Iterable[Difference]) -> str:
    counts = sorted({difference.seeds for difference in differences})
    if len(counts) > 1:
        return f"{counts[0]} to {counts[-1]} seeds"
    return f"{counts[0]} seed{'' if counts[0] == 1 else 's'}"


def _opposite(interval: Interval) -> Interval:
    mean, low, high = (None if value is None else -value for value in interval.values())
    return {"mean": mean, "low": high, "high": low}


def _points(interval: Interval) -> str:
    return _hundredths(interval, " points")


def _signed(interval: Interval) -> str:
    sign = "+" if (interval["mean"] or 0) > 0 else ""
    return sign + _points(interval)


def _hundredths(interval: Interval, unit: str, digits: int = 1) -> str:
    mean, *bounds = (plain_number(100 * value, digits) for value in interval.values() if value is not None)
    return (f"{mean}{unit}" + (f" [{', '.join(bounds)}]" if bounds else "")).replace("-", "−")


def _named(names: Sequence[str], amount: Amount) -> str:
    return _listed([f"{name} ({amount(name)})" for name in names])


def _listed(names: Sequence[str]) -> str:
    if len(names) > NAMED + 1:
        return f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
