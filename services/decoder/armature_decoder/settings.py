"""The decoder's settings, from environment variables.

Their names are ``ARMATURE_STORE__*``, ``ARMATURE_HTTP__*`` and ``ARMATURE_DECODER__*``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from armature.inference.model import BackendName
from armature.settings import HttpSettings, ServiceSettings, StoreSettings

GIB = 1 << 30


class DecoderSettings(BaseModel):
    """A decoder's memory, disk, device, batch sizes and waiting times."""

    cache_dir: Path = Field(Path(".armature/decoder"), description="artifacts and the last known good snapshot")
    disk_bytes: int = Field(
        64 * GIB, ge=1, description="bytes of artifacts in the cache; those of loaded bundles are never evicted"
    )
    memory_bytes: int = Field(
        8 * GIB,
        ge=1,
        description="bytes for weights, keys, values and prefixes of all bundles; shared weights count once",
    )
    kv_bytes: int = Field(
        GIB, ge=1, description="bytes for keys and values of a bundle's running requests; bounds its context"
    )
    prefix_bytes: int = Field(GIB // 4, ge=0, description="bytes for a bundle's prefix cache")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: cuda where there is one")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: as stored")
    backend: BackendName = Field(
        "auto", description="`hf`: transformers; `lean`: faster, Llama family; `auto`: lean where it can"
    )
    max_slots: int = Field(16, ge=1, le=4096, description="requests of a bundle in one batch")
    max_waiting: int = Field(512, ge=1, description="requests of a bundle that may wait; of one tenant half as many")
    prefill_chunk: int = Field(256, ge=1, description="prompt tokens computed between two steps of a running batch")
    max_tokens: int = Field(4096, ge=1, description="most tokens that a request may ask for")
    poll_interval: float = Field(1.0, gt=0, le=5, description="seconds between polls of the snapshot")
    preload: bool = Field(True, description="load a model when it goes live, not at its first request")
    load_wait: float = Field(30.0, ge=0, description="seconds a request waits for its bundle before 503")
    retry_min: float = Field(2.0, gt=0, description="seconds before a failed load is tried again; doubles")
    retry_max: float = Field(120.0, gt=0, description="longest back-off of a failed load, in seconds")
    drain_seconds: float = Field(30.0, ge=0, description="at shutdown, time for running requests to finish")
    max_body_bytes: int = Field(1 << 20, ge=1024, description="most bytes of a request's body")


class DecoderServiceSettings(ServiceSettings):
    """All settings of ``python -m armature_decoder``."""

    store: StoreSettings = StoreSettings()
    http: HttpSettings = HttpSettings(port=8100)
    decoder: DecoderSettings = DecoderSettings()
