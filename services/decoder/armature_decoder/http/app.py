"""The decoder as an ASGI app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from armature.http.app import add_routes, make_http_app
from armature.http.limits import BodyLimits
from armature.http.rates import LocalCounter, WrongKeys
from armature.inference.batch import GuidedBatch
from armature.inference.prefix_cache import PrefixCache
from armature.storage import open_store
from armature_decoder.bundles.cache import BundleCache, CachePolicy
from armature_decoder.bundles.disk import DiskCache
from armature_decoder.bundles.loader import BundleLoader, LoadedBundle, WorkingMemory
from armature_decoder.bundles.throttle import LoaderThrottle
from armature_decoder.engine.device_lock import DeviceLock
from armature_decoder.engine.engine import Engine
from armature_decoder.engine.scheduler import Scheduler
from armature_decoder.http.routes import router
from armature_decoder.limits.drain import DrainGate
from armature_decoder.limits.token_quota import TenantQuotas
from armature_decoder.metrics import BundleMetrics, EngineMetrics, Gauges
from armature_decoder.profiles import Profiles
from armature_decoder.request_metrics import RequestMetrics
from armature_decoder.service import DecoderService
from armature_decoder.settings import DecoderServiceSettings, DecoderSettings
from armature_decoder.snapshot import SnapshotPoller


def create_app(settings: DecoderServiceSettings) -> FastAPI:
    """Build the app; the store is first asked when it starts."""
    options, registry = settings.decoder, CollectorRegistry()
    store = open_store(settings.store)
    disk = DiskCache(store, options.cache_dir / "artifacts", options.disk_bytes)
    cache = _make_cache(disk, options, registry)
    registry.register(_gauges(cache, disk, options.max_slots))
    profiles = Profiles(cache, preload=options.preload)
    gate = DrainGate()
    poller = SnapshotPoller(
        store, options.cache_dir / "snapshot.json", options.poll_interval, profiles.update, profiles.tick
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(poller.start)
        yield
        await asyncio.to_thread(poller.stop)
        await asyncio.to_thread(cache.close)

    app = make_http_app(
        title="Armature decoder",
        lifespan=lifespan,
        registry=registry,
        checks={"snapshot": lambda: profiles.ready, "traffic": lambda: gate.is_open},
        limits=BodyLimits(options.max_body_bytes),
        http=settings.http,
    )
    app.state.service = DecoderService(
        profiles,
        options,
        RequestMetrics(registry),
        WrongKeys(LocalCounter(), settings.http.wrong_keys_per_minute),
        TenantQuotas(LocalCounter()),
        gate,
    )
    add_routes(app, router)
    return app


def _make_cache(disk: DiskCache, options: DecoderSettings, registry: CollectorRegistry) -> BundleCache:
    metrics, engine_metrics = BundleMetrics(registry), EngineMetrics(registry)
    device_lock, device = DeviceLock(), options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = None if options.dtype == "auto" else getattr(torch, options.dtype)

    working = WorkingMemory(options.kv_bytes, options.prefix_bytes, options.max_slots)

    def start_engine(loaded: LoadedBundle, name: str) -> Engine:
        scheduler = Scheduler(options.max_slots, options.max_waiting, options.prefill_chunk, loaded.budget)
        prefixes = PrefixCache(loaded.working.prefixes, metrics.prefix_looked_up)
        return Engine(GuidedBatch(loaded.model, prefixes), scheduler, name, engine_metrics, device_lock)

    return BundleCache(
        disk,
        BundleLoader(device, dtype, working, options.backend, LoaderThrottle(device_lock)),
        start_engine,
        CachePolicy(options.memory_bytes, options.retry_min, options.retry_max),
        metrics,
    )


def _gauges(cache: BundleCache, disk: DiskCache, max_slots: int) -> Gauges:
    def over_engines(attribute: str) -> dict[str, float]:
        return {"": sum(getattr(runtime.engine, attribute) for runtime in cache.runtimes())}

    def slots() -> dict[str, float]:
        engines = [runtime.engine for runtime in cache.runtimes()]
        taken = {"running": sum(engine.running for engine in engines), "joining": sum(e.joining for e in engines)}
        return {**taken, "free": len(engines) * max_slots - sum(taken.values())}

    def overheads() -> dict[str, float]:
        clocks = {runtime.engine.name: runtime.engine.clock.guided_overhead for runtime in cache.runtimes()}
        return {name: ratio for name, ratio in clocks.items() if ratio is not None}

    def kv_usage() -> dict[str, float]:
        return {runtime.engine.name: runtime.engine.kv_usage for runtime in cache.runtimes()}

    return Gauges(
        {
            "armature_num_requests_running": ("Requests in a batch", None, lambda: over_engines("running")),
            "armature_num_requests_waiting": ("Requests without a token yet", None, lambda: over_engines("pending")),
            "armature_slots": ("Batch slots of all bundles", "state", slots),
            "armature_kv_cache_usage_perc": (
                "Share of the bytes for keys and values that is reserved",
                "bundle",
                kv_usage,
            ),
            "armature_guided_overhead_ratio": ("Guided over unguided time of a step", "bundle", overheads),
            "armature_bundles": ("Bundles by state", "state", cache.counts),
            "armature_bundle_bytes": ("Bytes reserved for bundles", None, lambda: {"": cache.used_bytes()}),
            "armature_base_weights_bytes": ("Bytes of shared dense weights", None, lambda: {"": cache.base_bytes}),
            "armature_disk_cache_bytes": ("Bytes of artifacts on disk", None, lambda: {"": disk.used_bytes}),
        }
    )
