"""Families of metrics, and the two text formats that Prometheus reads.

OpenMetrics (https://prometheus.io/docs/specs/om/open_metrics_spec/) is the newer format.
node_exporter's textfile collector and promtool support only the older one
(https://prometheus.io/docs/instrumenting/exposition_formats/). They differ in the names of counters
and of information.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import starmap

GAUGE, COUNTER, HISTOGRAM, INFO = "gauge", "counter", "histogram", "info"

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PLAIN = "text/plain; version=0.0.4; charset=utf-8"
"""The content types."""

_SUFFIX = {COUNTER: "_total", INFO: "_info"}

Labels = Mapping[str, str]


@dataclass(slots=True)
class Sample:
    """A value of a family; `suffix` is for histograms: _bucket, _sum, _count."""

    labels: Labels
    value: float
    suffix: str = ""


@dataclass
class Family:
    """A metric. Its name lacks the ending that its kind has (_total, _info)."""

    name: str
    kind: str
    help: str
    samples: list[Sample] = field(default_factory=list)

    def add(self, labels: Labels, value: float = 1) -> None:
        self.samples.append(Sample(labels, value))

    def add_histogram(self, labels: Labels, buckets: Mapping[float, int], total: float) -> None:
        """`buckets` are the counts up to each bound, the last of which is infinity."""
        for bound, count in buckets.items():
            self.samples.append(Sample({**labels, "le": _number(bound)}, count, "_bucket"))
        self.samples.append(Sample(labels, buckets[math.inf], "_count"))
        self.samples.append(Sample(labels, total, "_sum"))


def openmetrics(families: Iterable[Family]) -> str:
    """Return all metrics in OpenMetrics; a family without samples is left out."""
    lines = []
    for family in families:
        if family.samples:
            lines += [f"# TYPE {family.name} {family.kind}", f"# HELP {family.name} {family.help}"]
            lines += _samples(family)
    return "\n".join([*lines, "# EOF", ""])


def plain(families: Iterable[Family]) -> str:
    """Return the metrics in the older text format."""
    lines = []
    for family in families:
        if family.samples:
            name = family.name + _SUFFIX.get(family.kind, "")
            kind = GAUGE if family.kind == INFO else family.kind
            lines += [f"# HELP {name} {family.help}", f"# TYPE {name} {kind}"]
            lines += _samples(family)
    return "\n".join([*lines, ""])


def _samples(family: Family) -> Iterator[str]:
    usual = family.name + _SUFFIX.get(family.kind, "")
    for sample in family.samples:
        name = family.name + sample.suffix if sample.suffix else usual
        labels = ",".join(starmap(_label, sample.labels.items()))
        value = _number(sample.value)
        yield f"{name}{{{labels}}} {value}" if labels else f"{name} {value}"


@lru_cache(maxsize=4096)  # a sandbox has the same labels in each of its series
def _label(key: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{key}="{escaped}"'


def _number(value: float) -> str:
    if value == math.inf:
        return "+Inf"
    return str(value) if type(value) is int else repr(float(value))
