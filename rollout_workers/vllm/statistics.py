"""vLLM's own statistics as series for Prometheus, whoever publishes them.

vLLM has a logger for Ray, but that wants Ray Serve and knows neither run nor actor. So they are read from where vLLM
keeps them, by its public `LLMEngine.get_metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vllm.v1.metrics.reader import Counter, Gauge, Histogram, Metric

_OF_ONE_ENGINE = {"model_name", "engine"}


Sample = tuple[str, dict[str, str], float]
"""Prometheus' name of a series; the tags that tell series of one engine apart, such as ``finished_reason``, or ``le``
of a bucket; and its value. A plain tuple, so that who receives it needs no vLLM."""


def samples(metrics: Iterable[Metric]) -> Iterator[Sample]:
    """The series behind vLLM's metrics, those left out that describe the configuration."""
    for metric in metrics:
        name = metric.name.replace(":", "_")
        tags = {key: value for key, value in metric.labels.items() if key not in _OF_ONE_ENGINE}
        match metric:
            case Gauge() if not name.endswith("_info"):
                yield (name, tags, metric.value)
            case Counter():
                yield (f"{name}_total", tags, metric.value)
            case Histogram():
                yield (f"{name}_sum", tags, metric.sum)
                yield (f"{name}_count", tags, metric.count)
                for limit, count in metric.buckets.items():
                    yield (f"{name}_bucket", {**tags, "le": limit}, count)
