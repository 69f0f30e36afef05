"""A real pretrained model through the whole platform: registered, aligned on real pairs, served, taken out again."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest
import torch

from armature.client import Client
from armature.client.errors import JobFailed
from armature.contracts.artifact_views import ArtifactView
from armature.contracts.artifacts import AdapterMetadata
from armature.contracts.specs.arm import AdapterShape, ArmTraining, ArmTrainSpec, PreferenceLoss
from armature.contracts.specs.arm_export import ArmExportSpec
from armature.contracts.specs.arm_import import ArmImportSpec
from armature.contracts.specs.checkpoint_export import CheckpointExportSpec
from armature.modeling.adapters.arm import load_adapter
from armature.modeling.adapters.peft_pblora import preferences
from armature.modeling.checkpoints.loading import load_model, load_tokenizer
from armature.modeling.tokenization.prompts import encode_text
from armature_cli.local_platform.embedded import EmbeddedPlatform, Options
from tests.support import hh_rlhf, main_job
from tests.support.processes import wait_until
from tests.support.stock_peft import stock_logits
from tests.support.stories260k import convert

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SOURCE, PAIRS = SHARED_DATA / "stories260k", SHARED_DATA / "hh_rlhf" / "harmless_pairs.jsonl.gz"
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not SOURCE.exists() or not PAIRS.exists(), reason="shared/data is not on this machine"),
]


def test_it_is_registered_aligned_and_served(tmp_path: Path) -> None:
    model = convert(SOURCE, tmp_path / "model")
    options = Options(tmp_path / "data", 0, 0, 0)
    with EmbeddedPlatform(options) as platform, Client(platform.api_url, platform.admin_key) as admin:
        built = main_job.build(admin, model, "stories260k")
        main_job.go_live(admin, built, "stories", {"empathy": 1.0})
        client = openai.OpenAI(base_url=f"{platform.decoder_url}/v1", api_key=platform.admin_key, max_retries=8)
        with client:
            wait_until(lambda: [served.id for served in client.models.list()], what="the model in the list")
            stream = client.completions.create(
                model="stories", prompt="Once upon a time", max_tokens=24, temperature=0.0, stream=True
            )
            plain = client.completions.create(
                model="stories",
                prompt="Once upon a time",
                max_tokens=24,
                temperature=0.0,
                extra_body={"guidance_weight": 0},
            )
            assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices).strip()
            assert plain.choices[0].text.strip()


def train_on_real_pairs(client: Client, base_model: str, vector: ArtifactView) -> ArtifactView:
    """A two-attribute ARM on the safe base, on dialogues that people judged; judged by the same ones."""
    rows = hh_rlhf.preference_rows(PAIRS, count=12, max_chars=200)
    pairs = client.datasets.upload("hh", format="preference", rows=rows).id
    spec = ArmTrainSpec(
        base_model=base_model,
        harm_vector=vector.id,
        harm_scale=1.0,
        pairs=pairs,
        validation_pairs=pairs,
        attributes=hh_rlhf.ATTRIBUTES,
        adapter=AdapterShape(layers="all"),
        loss=PreferenceLoss(beta=1.0),
        training=ArmTraining(steps=30, batch_size=6, learning_rate=1e-2, max_length=160),
    )
    return main_job.output(client.jobs.wait(client.jobs.create(spec).id, timeout=300), "arm")


def control(arm: ArtifactView) -> torch.Tensor:
    """(2, 2): at the preference for attribute i, how often the better answer in attribute j gets the greater reward."""
    assert isinstance(arm.metadata, AdapterMetadata)
    assert arm.metadata.validation is not None
    names = hh_rlhf.ATTRIBUTES
    points = arm.metadata.validation.points
    accuracy = {tuple(point.preference[name] for name in names): point.accuracy for point in points}
    return torch.tensor([[accuracy[vertex][name] for name in names] for vertex in ((1.0, 0.0), (0.0, 1.0))])


def test_real_pairs_train_an_arm_that_exports_both_ways(tmp_path: Path) -> None:
    """base_model.import, harm_vector.build, arm.train, arm.export, checkpoint.export, arm.import, all as jobs."""
    model = convert(SOURCE, tmp_path / "model")
    options = Options(tmp_path / "data", 0, 0, 0)
    with EmbeddedPlatform(options) as platform, Client(platform.api_url, platform.admin_key) as client:
        base = main_job.import_model(client, model, "stories260k").base_model_id
        assert base is not None
        harm = main_job.harm_vector_spec(base, main_job.upload_datasets(client))
        built = client.jobs.wait(client.jobs.create(harm).id, timeout=180)
        vector = main_job.output(built, "harm_vector")
        arm = train_on_real_pairs(client, base, vector)
        wish = dict(zip(hh_rlhf.ATTRIBUTES, (3.0, 1.0), strict=True))
        exports = {
            "lora": ArmExportSpec(arm=arm.id, preference=wish),
            "checkpoint": CheckpointExportSpec(
                base_model=base, harm_vector=vector.id, harm_scale=1.0, arm=arm.id, preference=wish
            ),
        }
        jobs = {name: client.jobs.create(spec).id for name, spec in exports.items()}
        outputs = {name: main_job.output(client.jobs.wait(id, timeout=120), name) for name, id in jobs.items()}
        outputs |= {"safe": main_job.output(built, "safe_checkpoint"), "arm": arm}
        folders = {name: tmp_path / name for name in outputs}
        for name, artifact in outputs.items():
            client.artifacts.download(artifact.id, folders[name])
        refuse_a_pickle(client, base, tmp_path)
    safe = folders["safe"]
    ids = encode_text(load_tokenizer(safe), "Once upon a time, there was a")
    loaded = load_adapter(load_model(safe), folders["arm"])
    with torch.no_grad(), preferences(loaded, torch.tensor([[0.75, 0.25]])):
        expected = loaded(torch.tensor([ids])).logits[0]
    for base_folder, lora in ((safe, folders["lora"]), (folders["checkpoint"], None)):
        torch.testing.assert_close(stock_logits(base_folder, lora, ids, tmp_path), expected, atol=1e-5, rtol=1e-6)
    assert (expected - load_model(safe)(torch.tensor([ids])).logits[0]).abs().max() > 0.1
    shares = control(arm)
    assert (shares.diag() >= 0.75).all(), shares
    assert (shares.diag() > shares.flip(0).diag() + 0.25).all(), shares


def refuse_a_pickle(client: Client, base: str, folder: Path) -> None:
    """Weights that only claim to be safetensors fail their job, and say why."""
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"\x80\x04\x95" + bytes(64))
    spec = ArmImportSpec(
        base_model=base,
        adapter_config=client.files.create(folder / "adapter_config.json", "model").id,
        adapter_weights=client.files.create(folder / "adapter_model.safetensors", "model").id,
        attributes=hh_rlhf.ATTRIBUTES,
    )
    with pytest.raises(JobFailed) as caught:
        client.jobs.wait(client.jobs.create(spec).id, timeout=120)
    error = caught.value.job.error
    assert error is not None
    assert (error.code, error.param) == ("invalid_checkpoint", "adapter_model.safetensors")
