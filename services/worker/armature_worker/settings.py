"""The worker's settings: the shared blocks and what a worker is."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from pydantic import BaseModel, Field

from armature.contracts.specs.base import Queue
from armature.settings import (
    DatabaseSettings,
    ImportSettings,
    JobSettings,
    LivenessSettings,
    RedisSettings,
    ServiceSettings,
    StoreSettings,
)


class WorkerSettings(BaseModel):
    """One worker: which jobs it takes, and on what it runs them."""

    queues: list[Queue] = Field(list(get_args(Queue)), min_length=1, description="jobs that it takes, as a JSON list")
    concurrency: int | None = Field(None, ge=1, description="jobs at the same time; one a device by default")
    max_tasks_per_child: int = Field(1, ge=1, description="jobs before a process is replaced by a fresh one")
    preload: bool = Field(True, description="a new process imports what its jobs need before it takes the first one")
    work_dir: Path = Field(Path(".armature/work"), description="private directories of running jobs")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda|cuda:\d+(,cuda:\d+)*)$",
        description="of the queue `gpu`. `auto`: every GPU, or the CPU where there is none; or `cpu`, `cuda:0,cuda:1`",
    )
    memory_bytes: int | None = Field(
        None, ge=1, description="of each device that a job may use; the device is asked where this is not set"
    )


class WorkerServiceSettings(ServiceSettings):
    """What ``python -m armature_worker`` reads from the environment."""

    database: DatabaseSettings = DatabaseSettings()
    redis: RedisSettings = RedisSettings()
    store: StoreSettings = StoreSettings()
    jobs: JobSettings = JobSettings()
    imports: ImportSettings = ImportSettings()
    worker: WorkerSettings = WorkerSettings()
    liveness: LivenessSettings = LivenessSettings()
