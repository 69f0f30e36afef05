"""What a decoder counts. Names follow vLLM's with our prefix; labels never hold a key, a tenant, a prompt or a job."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from armature.errors import ArmatureError

_STEP = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class EngineMetrics:
    """Steps of all engines."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "armature_step_seconds", "One step of a batch", ("guidance",), buckets=_STEP, registry=registry
        )
        self._tokens = Histogram(
            "armature_iteration_tokens_total", "Tokens of one turn of an engine", buckets=_SIZES, registry=registry
        )

    def stepped(self, guidance: str, seconds: float) -> None:
        """A batch made a step; ``guidance`` says how many of its requests are guided: none, some or all."""
        self._seconds.labels(guidance).observe(seconds)

    def iterated(self, tokens: int) -> None:
        """An engine had a turn: a token of each request in its batch, and a chunk of the prompts that join it."""
        self._tokens.observe(tokens)


class BundleMetrics:
    """Loading and unloading."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.seconds = Histogram("armature_bundle_load_seconds", "Download to ready", registry=registry)
        self.failures = Counter("armature_bundle_load_failures", "Loads that failed", ("reason",), registry=registry)
        self.evictions = Counter("armature_bundle_evictions", "Bundles pushed out for another", registry=registry)
        self.prefix_queries = Counter("armature_prefix_cache_queries", "Prompt tokens looked up", registry=registry)
        self.prefix_hits = Counter("armature_prefix_cache_hits", "Of these, known already", registry=registry)

    def loaded(self, seconds: float) -> None:
        """A bundle became ready."""
        self.seconds.observe(seconds)

    def prefix_looked_up(self, asked: int, found: int) -> None:
        """A stream's prompt was looked up among those computed before; counts tokens."""
        self.prefix_queries.inc(asked)
        self.prefix_hits.inc(found)

    def failed(self, error: Exception) -> None:
        """A load failed."""
        self.failures.labels(error.error_code if isinstance(error, ArmatureError) else "unexpected").inc()


class Gauges(Collector):
    """Values that are read when somebody looks: name -> (help, reader of label value -> number)."""

    def __init__(self, gauges: dict[str, tuple[str, str | None, Callable[[], Mapping[str, float]]]]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The families with their current values."""
        for name, (text, label, read) in self._gauges.items():
            family = GaugeMetricFamily(name, text, labels=[label] if label else None)
            for key, value in read().items():
                family.add_metric([key] if label else [], value)
            yield family
