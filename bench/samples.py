"""Measured values, and what is said of them: the median, and between what half of them are."""

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

Milliseconds = float
Samples = list[float]


class Summary(NamedTuple):
    """Median and quartiles of so many values."""

    median: float
    low: float
    high: float
    size: int


def summary(values: Sequence[float]) -> Summary:
    """Raises StatisticsError when there are none."""
    median = statistics.median(values)
    low = high = median
    if len(values) > 1:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(median, low, high, len(values))


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def rounded(values: Iterable[float], digits: int = 2) -> Samples:
    """As they are kept: more digits are noise."""
    return [round(value, digits) for value in values]
