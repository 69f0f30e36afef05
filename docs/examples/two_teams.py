"""Two teams, two base models, opposite preferences, one decoder: the whole way, through the SDK alone.

    ARMATURE_API_URL=... ARMATURE_DECODER_URL=... ARMATURE_API_KEY=... python two_teams.py MODEL_A MODEL_B

MODEL_A and MODEL_B are folders of causal language models (config, tokenizer with a chat template, safetensors). The
key is the platform's first one: the script creates the two tenants. The pairs below teach the adapter to say one
sentence or the other; they are here to be read, not to align anything.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from armature.client import AuthenticationError, Client, InternalServerError, NotFoundError
from armature.contracts.answers import ChatCompletion
from armature.contracts.artifact_views import ArtifactView

SENTENCES = {"empathy": "that sounds hard , i am here .", "helpfulness": "first do this , then do that ."}
QUESTION = [{"role": "user", "content": "my gate is broken"}]


def main(folders: list[Path]) -> None:
    """Build both teams' profiles and ask both the same question."""
    preferences: list[dict[str, float]] = [{"empathy": 1.0}, {"helpfulness": 1.0}]
    with Client() as admin:
        for name, folder, preference in zip(("care-line", "help-desk"), folders, preferences, strict=True):
            with Client(api_key=issue_key(admin, name)) as team:
                version = build_profile(team, folder, preference)
                answer = ask(team, version)
            assert answer.alignment is not None
            print(f"{name}: base {answer.alignment.base_digest[:8]}, preference {answer.alignment.preference}")
            print(f"  {answer.choices[0].message.content!r}")


def issue_key(admin: Client, tenant: str) -> str:
    """A key for a tenant's usual work."""
    return admin.keys.create(admin.tenants.ensure(tenant).id).token


def build_profile(team: Client, folder: Path, preference: dict[str, float]) -> int:
    """Import a base model, train an ARM on it, freeze both, go live; the version's number."""
    base = import_model(team, folder)
    arm = train_arm(team, base)
    team.profiles.ensure("answers")
    guidance = {"preference": preference, "guidance_weight": 3.0, "safe_set_delta": 5.0}
    version = team.profiles.create_version("answers", {"base_model": base, "arm": arm.id, "guidance": guidance})
    team.profiles.aliases.move("answers", version.version)
    return version.version


def import_model(team: Client, folder: Path) -> str:
    """Upload a model file by file; the id of the base model made of it."""
    files = {path.name: team.files.create(path, "model").id for path in sorted(folder.iterdir()) if path.is_file()}
    spec = {"kind": "base_model.import", "name": "base", "source": {"type": "files", "files": files}}
    job = team.jobs.wait(team.jobs.create(spec).id)
    assert job.base_model_id is not None
    return job.base_model_id


def train_arm(team: Client, base_model: str) -> ArtifactView:
    """One adapter for both attributes, on pairs in which each wins against the other."""
    rows = [
        {
            "prompt": f"my gate {number} is broken",
            "responses": list(SENTENCES.values()),
            "labels": {"empathy": 0, "helpfulness": 1},
        }
        for number in range(16)
    ]
    pairs = team.datasets.upload("pairs", rows, "preference")
    spec = {
        "kind": "arm.train",
        "base_model": base_model,
        "pairs": pairs.id,
        "attributes": list(SENTENCES),
        "training": {"steps": 20, "batch_size": 8, "max_length": 128},
    }
    job = team.jobs.wait(team.jobs.create(spec).id)
    return next(artifact for artifact in job.artifacts if artifact.kind == "adapter")


def ask(team: Client, version: int, patience: float = 120.0) -> ChatCompletion:
    """The answer of the version, once the decoder has heard of the key and loaded the pair."""
    deadline = time.monotonic() + patience
    while True:
        try:
            answer = team.chat.completions.create(model="answers", messages=QUESTION, max_tokens=24, seed=1)
            if answer.alignment and answer.alignment.version == version:
                return answer
        except (AuthenticationError, NotFoundError, InternalServerError):  # 503: it is being loaded
            if time.monotonic() > deadline:
                raise
        time.sleep(0.3)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:3]])
