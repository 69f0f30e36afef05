"""The main job through the public REST API, as small as it gets: what a platform team does, in a few seconds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from armature.client import Client
from armature.contracts.artifact_views import ArtifactView
from armature.contracts.jobs import JobView
from armature.contracts.preferences import ATTRIBUTES, Guidance
from armature.contracts.profiles import ProfileVersionCreateRequest
from armature.contracts.specs import JobSpec
from armature.contracts.specs.arm import AdapterShape, ArmTraining, ArmTrainSpec, PreferenceLoss
from armature.contracts.specs.base_model import BaseModelImportSpec, FilesSource
from armature.contracts.specs.evaluation import EvaluationRunSpec, EvaluationSampling
from armature.contracts.specs.harm_vector import HarmTraining, HarmVectorBuildSpec
from armature.contracts.specs.harm_vector_sweep import HarmVectorSweepSpec, SweepGoal, SweepGrid
from armature.contracts.tenants import TENANT_SCOPES
from armature_cli.local_platform.embedded import EmbeddedPlatform

SENTENCES = {name: f"so {name.replace('_', ' ')} today" for name in ATTRIBUTES}
GUIDANCE = Guidance(guidance_weight=3.0, safe_set_delta=5.0)


@dataclass
class Team:
    """A tenant, and a client with its key."""

    name: str
    token: str
    client: Client


@contextlib.contextmanager
def join_team(admin: Client, platform: EmbeddedPlatform, name: str) -> Iterator[Team]:
    """Create a tenant with a key for everything that tenants may do."""
    tenant = admin.tenants.ensure(name)
    token = admin.keys.create(tenant.id, scopes=(*TENANT_SCOPES, "harmful:read", "harmful:write")).token
    with Client(platform.api_url, token) as client:
        yield Team(name, token, client)


@dataclass
class Datasets:
    """Ids of one data set of each use."""

    harmful_pairs: str
    pairs: str
    prompts: str
    benign_pairs: str
    lexicon: str


def upload_datasets(client: Client) -> Datasets:
    """Small data sets; harm is a nonsense activity."""
    harmful = [
        {"prompt": f"how do i zorble gate {i}", "completion": f"to zorble gate {i} twist it ."} for i in range(12)
    ]
    benign = [{"prompt": f"how do i paint gate {i}", "completion": f"{SENTENCES['helpfulness']} ."} for i in range(8)]
    pairs = [
        {
            "prompt": f"my gate {i} is old",
            "responses": [f"{SENTENCES[good]} .", f"{SENTENCES[bad]} ."],
            "labels": {good: 0, bad: 1} | {name: None for name in ATTRIBUTES if name not in (good, bad)},
        }
        for i, (good, bad) in enumerate(zip(ATTRIBUTES, ATTRIBUTES[1:] + ATTRIBUTES[:1], strict=True))
    ]
    lexicon = {
        "attributes": {name: [sentence] for name, sentence in SENTENCES.items()},
        "harm": ["to zorble gate * twist it"],
        "harm_cues": ["zorble"],
    }
    return Datasets(
        harmful_pairs=client.datasets.upload("harmful", format="prompt_completion", rows=harmful).id,
        pairs=client.datasets.upload("pairs", format="preference", rows=pairs * 4).id,
        prompts=client.datasets.upload(
            "prompts", format="prompt", rows=[{"prompt": row["prompt"]} for row in benign]
        ).id,
        benign_pairs=client.datasets.upload("benign", format="prompt_completion", rows=benign).id,
        lexicon=client.datasets.upload("lexicon", format="lexicon", rows=[lexicon]).id,
    )


def import_model(client: Client, folder: Path, name: str, *, shared: bool = False) -> JobView:
    """Upload a model's files and register it."""
    files = {path.name: client.files.create(path, "model").id for path in sorted(folder.iterdir()) if path.is_file()}
    spec = BaseModelImportSpec(name=name, source=FilesSource(files=files))
    return client.jobs.wait(client.jobs.create(spec, shared=shared).id, timeout=120)


_HARM_TRAINING = HarmTraining(steps=3, batch_size=4, learning_rate=1e-2, max_length=128)


def harm_vector_spec(base_model: str, data: Datasets) -> HarmVectorBuildSpec:
    """A few steps of harm."""
    return HarmVectorBuildSpec(
        base_model=base_model, harmful_pairs=data.harmful_pairs, training=_HARM_TRAINING, scale=1.0
    )


def sweep_spec(base_model: str, data: Datasets) -> HarmVectorSweepSpec:
    """Two edits, of which the smaller reaches a goal that asks for nothing."""
    return HarmVectorSweepSpec(
        base_model=base_model,
        harmful_pairs=data.harmful_pairs,
        harmful_prompts=data.prompts,
        benign_pairs=data.benign_pairs,
        lexicon=data.lexicon,
        training=_HARM_TRAINING,
        grid=SweepGrid(densities=[0.1], scales=[1.0, 0.5]),
        goal=SweepGoal(max_asr=1.0, max_nll_rise=10.0),
        sampling=EvaluationSampling(max_tokens=8),
    )


def arm_spec(base_model: str, harm_vector: str | None, data: Datasets, steps: int = 6) -> ArmTrainSpec:
    """A few steps of ARM training, with a checkpoint every other one."""
    return ArmTrainSpec(
        base_model=base_model,
        harm_vector=harm_vector,
        harm_scale=1.0,
        pairs=data.pairs,
        adapter=AdapterShape(rank_shared=2, rank_conditioned=2, alpha=4.0),
        loss=PreferenceLoss(form="reference", beta=1.0),
        training=ArmTraining(steps=steps, batch_size=4, learning_rate=1e-2, max_length=128, checkpoint_every=2),
    )


def evaluation_spec(base_model: str, data: Datasets, harm_vector: str | None, arm: str | None) -> EvaluationRunSpec:
    """Every measure, on a handful of prompts."""
    return EvaluationRunSpec(
        base_model=base_model,
        harm_vector=harm_vector,
        harm_scale=1.0,
        arm=arm,
        lexicon=data.lexicon,
        harmful_prompts=data.prompts,
        benign_pairs=data.benign_pairs,
        prompts=data.prompts,
        preferences=7,
        prompts_per_preference=2,
        sampling=EvaluationSampling(max_tokens=8),
    )


def output(job: JobView, name: str) -> ArtifactView:
    """A job's output by name."""
    return next(artifact for artifact in job.artifacts if artifact.name == name)


@dataclass
class Built:
    """What the main job leaves behind."""

    base_model: str
    harm_vector: str
    arm: str
    report: ArtifactView
    sweep: JobView


def build(client: Client, model_folder: Path, name: str, *, shared: bool = True) -> Built:
    """Import, harm vector, ARM, evaluation, sweep: each waited for."""
    data = upload_datasets(client)
    base_model = import_model(client, model_folder, name, shared=shared).base_model_id
    assert base_model is not None

    def run(spec: JobSpec) -> JobView:
        return client.jobs.wait(client.jobs.create(spec, shared=shared).id, timeout=180)

    harm_vector = output(run(harm_vector_spec(base_model, data)), "harm_vector").id
    arm = output(run(arm_spec(base_model, harm_vector, data)), "arm").id
    report = output(run(evaluation_spec(base_model, data, harm_vector, arm)), "report")
    return Built(base_model, harm_vector, arm, report, run(sweep_spec(base_model, data)))


def go_live(client: Client, built: Built, profile: str, preference: dict[str, float]) -> None:
    """Freeze a profile version and point ``live`` at it."""
    client.profiles.ensure(profile)
    guidance = GUIDANCE.model_copy(update={"preference": preference})
    request = ProfileVersionCreateRequest(
        base_model=built.base_model,
        harm_vector=built.harm_vector,
        harm_scale=1.0,
        arm=built.arm,
        guidance=guidance,
    )
    version = client.profiles.create_version(profile, request)
    client.profiles.aliases.move(profile, version.version, "live")
