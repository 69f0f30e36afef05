"""Typed settings blocks, from which each service composes its own and reads it in its entry point.

Every field is set by an environment variable ``ARMATURE_<BLOCK>__<FIELD>``, for example
``ARMATURE_DATABASE__URL=postgresql+psycopg://user:secret@host/armature``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ENV_PREFIX = "ARMATURE_"


class DatabaseSettings(BaseModel):
    """The control plane's database."""

    url: SecretStr = Field(SecretStr("sqlite:///.armature/armature.db"), description="SQLAlchemy URL")
    pool_size: int = Field(10, ge=1, description="connections per process")
    prepared_statements: bool = Field(
        True, description="`false` behind PgBouncer in transaction mode, which gives a statement another connection"
    )


class RedisSettings(BaseModel):
    """The Celery broker. It holds job ids only, which the relay sends again after a loss."""

    url: SecretStr = Field(SecretStr("redis://127.0.0.1:6379/0"), description="`redis://[:password@]host:port/db`")


class StoreSettings(BaseModel):
    """The artifact store: a local directory or any S3."""

    kind: Literal["local", "s3"] = Field("local", description="`local` or `s3`")
    path: Path = Field(Path(".armature/store"), description="directory of the local store")
    endpoint: str = Field("", description="host:port of the S3 server")
    public_endpoint: str = Field("", description="host:port of the S3 server in links for clients, if different")
    region: str = Field("us-east-1", description="region of the bucket")
    bucket: str = Field("armature", description="bucket, made if missing")
    access_key: str = Field("", description="must be allowed to list, read, write and delete objects of the bucket")
    secret_key: SecretStr = Field(SecretStr(""), description="secret of the access key")
    secure: bool = Field(True, description="use https; certificates are verified against `SSL_CERT_FILE`, if set")

    @field_validator("endpoint", "public_endpoint")
    @classmethod
    def _is_host_and_port(cls, endpoint: str) -> str:
        scheme, separator, rest = endpoint.rpartition("://")
        if separator or "/" in rest:
            secure = {"http": ", with ARMATURE_STORE__SECURE=false for http"}.get(scheme, "")
            raise ValueError(f"must be host:port and no URL: write {rest.split('/')[0]}{secure}")
        return endpoint

    @model_validator(mode="after")
    def _s3_is_complete(self) -> StoreSettings:
        if self.kind == "s3" and not (self.endpoint and self.access_key and self.secret_key.get_secret_value()):
            raise ValueError("an s3 store needs endpoint, access_key and secret_key")
        return self


class JobSettings(BaseModel):
    """The job protocol's times, in seconds. API, relay and workers must use the same values."""

    lease_seconds: float = Field(30.0, gt=0, description="a worker without a heartbeat for this long loses its job")
    relay_interval: float = Field(1.0, gt=0, description="pause between two rounds of the relay")
    resend_after: float = Field(
        60.0, gt=0, description="a job not claimed for this long is sent again, if its queue lacks messages"
    )
    sweep_interval: float = Field(3600.0, gt=0, description="pause between two sweeps of orphaned objects")
    keep_checkpoints: float = Field(
        604_800.0, ge=0, description="how long the newest checkpoint of a failed or cancelled job is kept for a retry"
    )
    max_attempts: int = Field(3, ge=1, description="attempts after which a job that keeps losing its worker fails")
    retry_delay: float = Field(5.0, ge=0, description="back-off before the second attempt after an outage; doubles")

    @property
    def heartbeat_interval(self) -> float:
        """Seconds between heartbeats: at most 1, for a fast cancellation; two may fail within a lease."""
        return min(1.0, self.lease_seconds / 3)


class ImportSettings(BaseModel):
    """Sources of ``base_model.import`` beside uploaded files; none by default."""

    roots: list[Path] = Field(default_factory=list, description="folders below which models may be imported")
    hub: bool = Field(False, description="allow downloads from the Hugging Face hub")


class EndpointSettings(BaseModel):
    """An OpenAI-compatible endpoint that jobs may ask. Specs name it and never hold its key."""

    url: str = Field(pattern=r"^https?://", description="base URL, such as `https://api.example.com/v1`")
    api_key: SecretStr = Field(SecretStr(""), description="bearer token; empty: none is sent")
    concurrency: int = Field(8, ge=1, le=256, description="requests at the same time, of each job")
    timeout: float = Field(120.0, gt=0, description="seconds for one answer")


class LogSettings(BaseModel):
    """The level and format of a process' logs."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="`DEBUG` to `ERROR`")
    format: Literal["json", "text"] = Field("json", description="`json`: one object per line; `text`: for a terminal")


class LivenessSettings(BaseModel):
    """The liveness of relay and worker, which have no HTTP server."""

    file: Path | None = Field(None, description="touched every few seconds while relay or worker are alive")


class HttpSettings(BaseModel):
    """An HTTP server: its address, optional routes and limits."""

    host: str = Field("127.0.0.1", description="address to listen on; `0.0.0.0`: all interfaces")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0: any free port")
    metrics_token: SecretStr = Field(
        SecretStr(""), description="bearer token that a scraper of `/metrics` must send; empty: no such route"
    )
    docs: bool = Field(False, description="serve `/docs`, a page whose scripts come from a public CDN")
    cors_origins: list[str] = Field(default_factory=list, description="web origins that may call (CORS)")
    wrong_keys_per_minute: int = Field(
        60, ge=1, description="wrong API keys after which an address is refused until the minute is over"
    )
    body_patience: float = Field(20.0, gt=0, description="seconds for a body slower than 1 kB per second, then 408")


class ServiceSettings(BaseSettings):
    """Base of each service's settings, read from environment variables nested by a double underscore."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="ignore")

    log: LogSettings = LogSettings()
