"""Metrics: numbers as Prometheus reads them, and those of several processes as one text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal


SAMPLE: Final = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, and its samples: labels and value."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    samples: Iterable[tuple[Mapping[str, str], float]]


def text(metrics: Iterable[Metric]) -> str:
    """Return the metrics in Prometheus's text format, without the last end of line."""
    lines = []
    for metric in metrics:
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
        lines += [_sample(metric.name, _labels(labels), f"{value:.15g}") for labels, value in metric.samples]
    return "\n".join(lines)


def merged(own: str, processes: Mapping[str, str]) -> str:
    """Return one text of the metrics of processes, each sample with its `process`, and of those that know it already.

    A metric's samples stand together, as the format demands.
    """
    blocks: dict[str, list[str]] = {}
    for process, told in [("", own), *processes.items()]:
        name = ""
        for line in told.splitlines():
            if line.startswith("#"):
                name = line.split(" ", 3)[2]
                if line not in blocks.setdefault(name, []):
                    blocks[name].append(line)
            elif (sample := SAMPLE.fullmatch(line)) is not None:
                labels = ",".join(filter(None, [_labels({"process": process}) if process else "", sample[2]]))
                blocks.setdefault(name, []).append(_sample(sample[1], labels, sample[3]))
    return "\n".join(line for block in blocks.values() for line in block)


def _sample(name: str, labels: str, value: str) -> str:
    return f"{name}{{{labels}}} {value}" if labels else f"{name} {value}"


def _labels(labels: Mapping[str, str]) -> str:
    # names of services, handlers and processes: nothing in them wants escaping
    return ",".join(f'{name}="{value}"' for name, value in labels.items())
