"""Metrics of engines and bundles.

Names follow vLLM's; labels never hold a key, a tenant, a prompt or a job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from armature.errors import ArmatureError

_STEP = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class EngineMetrics:
    """Histograms over the steps and iterations of all engines."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "armature_step_seconds", "One step of a batch", ("guidance",), buckets=_STEP, registry=registry
        )
        self._tokens = Histogram(
            "armature_iteration_tokens_total", "Tokens of one engine iteration", buckets=_SIZES, registry=registry
        )

    def stepped(self, guided: str, seconds: float) -> None:
        """Count one step of a batch of which none, some or all requests are guided, as ``guided`` says."""
        self._seconds.labels(guided).observe(seconds)

    def iterated(self, tokens: int) -> None:
        """Count one engine iteration: a token of each running request, and a chunk of the prompts in prefill."""
        self._tokens.observe(tokens)


class BundleMetrics:
    """Counters of loaded, failed and evicted bundles, and of prefix-cache lookups."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.seconds = Histogram("armature_bundle_load_seconds", "Download to ready", registry=registry)
        self.failures = Counter("armature_bundle_load_failures", "Loads that failed", ("reason",), registry=registry)
        self.evictions = Counter("armature_bundle_evictions", "Bundles evicted for another", registry=registry)
        self.prefix_queries = Counter(
            "armature_prefix_cache_queries", "Prompt tokens looked up in the prefix cache", registry=registry
        )
        self.prefix_hits = Counter(
            "armature_prefix_cache_hits", "Prompt tokens found in the prefix cache", registry=registry
        )

    def loaded(self, seconds: float) -> None:
        """Count a bundle that became ready after ``seconds``."""
        self.seconds.observe(seconds)

    def prefix_looked_up(self, tokens: int, found: int) -> None:
        """Count one stream's lookup in the prefix cache, in tokens."""
        self.prefix_queries.inc(tokens)
        self.prefix_hits.inc(found)

    def failed(self, error: Exception) -> None:
        """Count a failed load by its error code."""
        self.failures.labels(error.error_code if isinstance(error, ArmatureError) else "unexpected").inc()


class Gauges(Collector):
    """Gauges whose values are read at each scrape: name -> (help, label, reader of label value -> number)."""

    def __init__(self, gauges: dict[str, tuple[str, str | None, Callable[[], Mapping[str, float]]]]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the metric families with their current values."""
        for name, (text, label, read) in self._gauges.items():
            family = GaugeMetricFamily(name, text, labels=[label] if label else None)
            for key, value in read().items():
                family.add_metric([key] if label else [], value)
            yield family
