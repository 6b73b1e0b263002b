"""Intervals over seeds: Student's for means and for logarithms of ratios, a paired bootstrap for ratios of means."""

import numpy as np

Interval = dict[str, float | None]
"""{"mean", "low", "high"}: an estimate and its 95% interval; None where undefined."""

RESAMPLES = 10_000
ENUMERATED_SEEDS = 5
"""Up to this many seeds all n^n resamples (3,125 at most) are enumerated, and the bootstrap is exact."""


def undefined() -> Interval:
    """An interval of which nothing is known.

    Returns:
        All three fields None.
    """
    return {"mean": None, "low": None, "high": None}


def student_half_width(values: np.ndarray) -> np.ndarray:
    """Half the width of the 95% interval of a mean: t(0.975, n − 1) · s / √n, with s² the unbiased variance.

    Args:
        values: shape (n, …), one row a seed, n ≥ 2.

    Returns:
        Shape (…), in the unit of the values.
    """
    from scipy.special import stdtrit  # scipy.stats gives the same number and takes a second to import

    count = len(values)
    return stdtrit(count - 1, 0.975) * np.std(values, axis=0, ddof=1) / np.sqrt(count)


def student_interval(values: np.ndarray) -> Interval:
    """The mean over seeds with Student's 95% interval. The interval is not clipped to the range of the measure.

    Args:
        values: shape (n,), one value a seed.

    Returns:
        mean, low, high; low and high are None for one seed, all are None for none.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        return undefined()
    mean = float(values.mean())
    if len(values) == 1:
        return {"mean": mean, "low": None, "high": None}
    half = float(student_half_width(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def resampled_seeds(count: int) -> np.ndarray:
    """The resamples of a bootstrap over seeds.

    Args:
        count: n, how many seeds there are.

    Returns:
        Integer array of shape (resamples, n), seeds drawn with replacement: each of the n^n possible draws once for
        n ≤ 5, else 10,000 random draws from a generator with a fixed seed.
    """
    if count <= ENUMERATED_SEEDS:
        return np.indices((count,) * count).reshape(count, -1).T
    return np.random.default_rng(0).integers(0, count, size=(RESAMPLES, count))


def bootstrap_ratio(numerators: np.ndarray, denominators: np.ndarray) -> Interval:
    """The ratio of two means over the same seeds, with the percentile interval of a paired bootstrap.

    The estimate is mean(numerators) / mean(denominators), not a mean of ratios. Each resample draws n seeds with
    replacement and takes both means over them. The interval leaves out the floor(0.025 · N) lowest and as many highest
    of the N resampled ratios. A resample in which the denominator is zero, or has not the sign it has over all seeds,
    says nothing about the ratio: it counts as minus infinity for `low` and as plus infinity for `high`.

    With few seeds such intervals are narrower than their nominal 95%: three seeds have only ten different resamples.

    Args:
        numerators: shape (n,), one value a seed.
        denominators: shape (n,), the same seeds in the same order.

    Returns:
        mean, low, high; low and high are None for one seed or where either would be infinite; all are None without
        seeds and where the mean of the denominators is zero.
    """
    numerators, denominators = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if len(numerators) == 0:
        return undefined()
    whole = denominators.mean()
    if whole == 0:
        return undefined()
    interval: Interval = {"mean": float(numerators.mean() / whole) + 0.0, "low": None, "high": None}
    if len(numerators) == 1:
        return interval
    drawn = resampled_seeds(len(numerators))
    above, below = numerators[drawn].mean(axis=1), denominators[drawn].mean(axis=1)
    usable = below * np.sign(whole) > 0
    ratios = np.divide(above, below, out=np.zeros_like(above), where=usable) + 0.0  # + 0.0 makes -0.0 a plain zero
    cut = len(ratios) // 40
    low = np.sort(np.where(usable, ratios, -np.inf))[cut]
    high = np.sort(np.where(usable, ratios, np.inf))[-1 - cut]
    if np.isfinite(low) and np.isfinite(high):
        interval["low"], interval["high"] = float(low), float(high)
    return interval


def geometric_ratio(numerators: np.ndarray, denominators: np.ndarray) -> Interval:
    """The geometric mean of ratios over the same seeds, with Student's 95% interval of their logarithms.

    Twice and half as much average to as much; the interval is not symmetric about the estimate.

    Args:
        numerators: shape (n,), one value a seed, above 0.
        denominators: shape (n,), the same seeds in the same order, above 0.

    Returns:
        mean, low, high; low and high are None for one seed; all are None without seeds, or where a value is 0.
    """
    numerators, denominators = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if not np.all(numerators > 0) or not np.all(denominators > 0):
        return undefined()
    logarithms = student_interval(np.log(numerators / denominators))
    return {name: None if value is None else float(np.exp(value)) for name, value in logarithms.items()}


def excludes_zero(interval: Interval) -> bool:
    """Whether an interval shows a difference from zero.

    Args:
        interval: an estimate with its interval.

    Returns:
        True where the interval is defined and zero lies outside it.
    """
    low, high = interval["low"], interval["high"]
    return low is not None and high is not None and not low <= 0 <= high
