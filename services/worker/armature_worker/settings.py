"""The worker's settings: the shared blocks and its own."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from pydantic import BaseModel, Field

from armature.contracts.specs.base import Queue
from armature.settings import (
    DatabaseSettings,
    EndpointSettings,
    ImportSettings,
    JobSettings,
    LivenessSettings,
    RedisSettings,
    ServiceSettings,
    StoreSettings,
)


class WorkerSettings(BaseModel):
    """Settings of one worker: which jobs it takes, and the devices that run them."""

    queues: list[Queue] = Field(list(get_args(Queue)), min_length=1, description="queues to serve, as a JSON list")
    concurrency: int | None = Field(None, ge=1, description="jobs at the same time; by default one per device")
    max_tasks_per_child: int = Field(1, ge=1, description="jobs before a fresh process replaces a pool process")
    preload: bool = Field(True, description="pool processes import what jobs need before their first one")
    work_dir: Path = Field(Path(".armature/work"), description="private directories of running jobs")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda|cuda:\d+(,cuda:\d+)*)$",
        description="devices of the queue `gpu`: `auto` (all GPUs, else the CPU), `cpu`, or names like `cuda:0,cuda:1`",
    )
    endpoints: dict[str, EndpointSettings] = Field(
        default_factory=dict,
        description="chat endpoints that jobs may ask, by name, as JSON: `url`, `api_key`, `concurrency`, `timeout`",
    )
    memory_bytes: int | None = Field(
        None, ge=1, description="bytes of each device that a job may use; by default what the device has free"
    )


class WorkerServiceSettings(ServiceSettings):
    """All settings that ``python -m armature_worker`` reads from the environment."""

    database: DatabaseSettings = DatabaseSettings()
    redis: RedisSettings = RedisSettings()
    store: StoreSettings = StoreSettings()
    jobs: JobSettings = JobSettings()
    imports: ImportSettings = ImportSettings()
    worker: WorkerSettings = WorkerSettings()
    liveness: LivenessSettings = LivenessSettings()
