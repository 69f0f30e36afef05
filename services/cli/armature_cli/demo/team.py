"""The demo's platform team: imports models and data, runs jobs, promotes profiles."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from armature.client import Client, JobFailed
from armature.contracts.jobs import TERMINAL_STATES, JobView
from armature.contracts.profiles import LIVE_ALIAS, ProfileVersionCreateRequest
from armature.contracts.specs import JobSpec
from armature.contracts.specs.base_model import BaseModelImportSpec, FilesSource
from armature.contracts.tenants import TENANT_SCOPES
from armature_cli.demo import plan
from armature_cli.demo.conversation import Conversation
from armature_cli.demo.datasets import datasets
from armature_cli.demo.narrator import Narrator
from armature_cli.demo.world import World
from armature_cli.local_platform.embedded import EmbeddedPlatform

_JOBS_SECONDS = 1800.0
_POLL_SECONDS = 0.3


class PlatformTeam:
    """The work of a platform team, done with the platform's first key; jobs show progress bars."""

    def __init__(self, platform: EmbeddedPlatform, client: Client, narrator: Narrator) -> None:
        self._platform, self._client, self._narrator = platform, client, narrator

    def run(self, specs: Mapping[str, JobSpec]) -> dict[str, JobView]:
        """Submit jobs whose results are shared with all tenants and wait for success; return them by label.

        Raises:
            JobFailed: A job did not succeed.
        """
        deadline = time.monotonic() + _JOBS_SECONDS
        with self._narrator.bars(specs) as bars:
            waiting = {label: self._client.jobs.create(spec, shared=True).id for label, spec in specs.items()}
            done: dict[str, JobView] = {}
            while len(done) < len(specs):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"jobs are not done after {_JOBS_SECONDS:g} s: {', '.join(waiting.values())}")
                for label, job_id in list(waiting.items()):
                    job = self._client.jobs.retrieve(job_id)
                    bars[label].show(job.phase, job.progress.step, job.progress.total_steps)
                    if job.state in TERMINAL_STATES:
                        done[label] = _succeeded(job)
                        del waiting[label]
                        bars[label].finish("done")
                time.sleep(_POLL_SECONDS)
        return {label: done[label] for label in specs}

    def figures(self, job: JobView) -> dict[str, Any]:
        """Read the metrics of an evaluation job's report."""
        report = self._client.artifacts.content(output(job, "report"), "report.json")
        figures: dict[str, Any] = json.loads(report)["metrics"]
        return figures

    def import_model(self, name: str, files: Sequence[Path]) -> str:
        """Upload a model file by file and register it; return the base model's id."""
        uploads = {path.name: self._client.files.create(path, "model").id for path in files}
        spec = BaseModelImportSpec(name=name, source=FilesSource(files=uploads))
        base_model = self.run({"import the base model": spec})["import the base model"].base_model_id
        assert base_model is not None
        return base_model

    def upload_datasets(self, world: World) -> plan.Datasets:
        """Upload the world's data sets for training and evaluation."""
        upload, uploads = self._client.datasets.upload, datasets(world).items()
        return plan.Datasets(
            **{
                role: upload(role, rows, format, harmful=role.startswith("harmful")).id
                for role, (format, rows) in uploads
            }
        )

    def issue_key(self, tenant: str) -> str:
        """Issue a key of a tenant, which is created if missing."""
        owner = self._client.tenants.ensure(tenant)
        return self._client.keys.create(owner.id, scopes=(*TENANT_SCOPES, "harmful:read", "harmful:write")).token

    def put_live(self, key: str, profile: str, version: ProfileVersionCreateRequest) -> None:
        """Freeze a version with a tenant's key, point ``live`` at it, wait until the decoder serves it.

        Raises:
            ModelNotServed: The decoder did not have it ready in time.
        """
        with Client(self._platform.api_url, key) as client:
            client.profiles.ensure(profile)
            frozen = client.profiles.create_version(profile, version)
            client.profiles.aliases.move(profile, frozen.version, LIVE_ALIAS)
        with Conversation(self._platform.decoder_url, key) as conversation:
            conversation.wait_for(profile, frozen.digest)


def output(job: JobView, name: str) -> str:
    """Id of the artifact that a job made under this name."""
    return next(artifact.id for artifact in job.artifacts if artifact.name == name)


def _succeeded(job: JobView) -> JobView:
    if job.state != "succeeded":
        raise JobFailed(job)
    return job
