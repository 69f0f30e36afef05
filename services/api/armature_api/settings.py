"""Settings of the API, its relay and its bootstrap: the shared blocks and the API's limits."""

from __future__ import annotations

from pydantic import BaseModel, Field

from armature.settings import (
    DatabaseSettings,
    HttpSettings,
    JobSettings,
    LivenessSettings,
    RedisSettings,
    ServiceSettings,
    StoreSettings,
)


class ApiLimits(BaseModel):
    """Limits on the bytes that the API reads."""

    max_body: int = Field(1_000_000, ge=1, description="bytes of a JSON body")
    max_upload: int = Field(64 * 2**30, ge=1, description="bytes of a file upload, form overhead included")
    max_rows_file: int = Field(4 * 2**30, ge=1, description="bytes of a file of rows, which is read on arrival")


class ApiServiceSettings(ServiceSettings):
    """Settings that ``python -m armature_api``, its relay and its bootstrap read from the environment."""

    database: DatabaseSettings = DatabaseSettings()
    redis: RedisSettings = RedisSettings()
    store: StoreSettings = StoreSettings()
    jobs: JobSettings = JobSettings()
    http: HttpSettings = HttpSettings(port=8000)
    api: ApiLimits = ApiLimits()
    liveness: LivenessSettings = LivenessSettings()
