"""Typed settings blocks. Each service composes its own from them and builds it in its entry point, never at import.

Every field is set by an environment variable ``ARMATURE_<BLOCK>__<FIELD>``, for example
``ARMATURE_DATABASE__URL=postgresql+psycopg://user:secret@host/armature``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ENV_PREFIX = "ARMATURE_"


class DatabaseSettings(BaseModel):
    """Where the control plane keeps its rows."""

    url: SecretStr = Field(SecretStr("sqlite:///.armature/armature.db"), description="SQLAlchemy URL")
    pool_size: int = Field(10, ge=1, description="connections of one process")


class RedisSettings(BaseModel):
    """The Celery broker. Holds only job ids; losing it loses nothing."""

    url: SecretStr = Field(SecretStr("redis://127.0.0.1:6379/0"), description="`redis://[:password@]host:port/db`")


class StoreSettings(BaseModel):
    """The artifact store: a local directory, or any S3."""

    kind: Literal["local", "s3"] = Field("local", description="`local` or `s3`")
    path: Path = Field(Path(".armature/store"), description="directory of the local store")
    endpoint: str = Field("", description="host:port of the S3 server")
    public_endpoint: str = Field("", description="host:port that clients reach the S3 server at, if another; in links")
    region: str = Field("us-east-1", description="of the bucket")
    bucket: str = Field("armature", description="made when missing")
    access_key: str = Field("", description="needs to list, read, write and delete objects of the bucket")
    secret_key: SecretStr = Field(SecretStr(""), description="of the access key")
    secure: bool = Field(True, description="https; certificates are checked against `SSL_CERT_FILE`, if set")

    @model_validator(mode="after")
    def _s3_is_complete(self) -> StoreSettings:
        if self.kind == "s3" and not (self.endpoint and self.access_key and self.secret_key.get_secret_value()):
            raise ValueError("an s3 store needs endpoint, access_key and secret_key")
        return self


class JobSettings(BaseModel):
    """The job protocol's clocks, in seconds. API, relay and workers must agree on them."""

    lease_seconds: float = Field(30.0, gt=0, description="a worker that is silent for this long loses its job")
    relay_interval: float = Field(1.0, gt=0, description="pause between two rounds of the relay")
    resend_after: float = Field(
        60.0, gt=0, description="a message is taken for lost after this long, if one is missing"
    )
    sweep_interval: float = Field(3600.0, gt=0, description="pause between two searches for orphaned objects")
    keep_checkpoints: float = Field(
        604_800.0, ge=0, description="how long the newest checkpoint of a failed or cancelled job waits for a retry"
    )
    max_attempts: int = Field(3, ge=1, description="then a job that keeps losing its worker fails")
    retry_delay: float = Field(5.0, ge=0, description="before the second attempt of a job that met an outage; doubles")

    @property
    def heartbeat_interval(self) -> float:
        """A cancellation is heard of within a second, and two heartbeats may fail before the lease runs out."""
        return min(1.0, self.lease_seconds / 3)


class ImportSettings(BaseModel):
    """What ``base_model.import`` may read beside uploaded files; nothing unless the operator says so."""

    roots: list[Path] = Field(default_factory=list, description="folders below which models may be imported")
    hub: bool = Field(False, description="allow downloads from the Hugging Face hub")


class LogSettings(BaseModel):
    """How a process logs: one JSON object a line, or a readable line."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="`DEBUG` to `ERROR`")
    format: Literal["json", "text"] = Field("json", description="`json`: an object a line; `text`: for a terminal")


class LivenessSettings(BaseModel):
    """How relay and worker, which speak no HTTP, show that they work."""

    file: Path | None = Field(None, description="touched every few seconds by a process without HTTP that works")


class HttpSettings(BaseModel):
    """Where an HTTP service listens, and what of it is open to whom."""

    host: str = Field("127.0.0.1", description="address to listen on; `0.0.0.0` is every one")
    port: int = Field(8000, ge=0, le=65535, description="0 takes a free one")
    metrics_token: SecretStr = Field(
        SecretStr(""), description="sent by who scrapes `/metrics`, as a bearer token; empty: there is no such route"
    )
    docs: bool = Field(False, description="serve `/docs`, a page whose scripts come from a public CDN")
    cors_origins: list[str] = Field(default_factory=list, description="web origins that may call; by default none")
    wrong_keys_per_minute: int = Field(
        60, ge=1, description="wrong API keys from one address, which is then refused until the minute is over"
    )
    body_patience: float = Field(20.0, gt=0, description="seconds for a body that brings less than 1 kB a second")


class ServiceSettings(BaseSettings):
    """Base of each service's settings: environment variables with the prefix, nested by a double underscore."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="ignore")

    log: LogSettings = LogSettings()
