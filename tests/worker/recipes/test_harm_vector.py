"""harm_vector.build: the vector, the safe checkpoint, its controls, and harm-tuned weights that never stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from armature.algorithms.selection_rules import select_top
from armature.algorithms.tensor_sources import LiveTensors
from armature.contracts.artifacts import CheckpointMetadata, TaskVectorMetadata
from armature.contracts.specs import parse_spec
from armature.errors import EmptyTaskVector, InvalidDataset, InvalidRequest, NonFiniteLoss
from armature.modeling.checkpoints.folder import WEIGHTS, describe_checkpoint, open_checkpoint
from armature.modeling.checkpoints.loading import load_model, load_tokenizer
from armature.modeling.checkpoints.task_vector import read_task_vector
from armature_worker.context.ports import JobCancelled, RecipeResult
from armature_worker.host.memory_estimate import estimate_memory
from armature_worker.recipes import load_recipe
from armature_worker.recipes.harm_vector import run
from tests.support.recipe_world import DATA, World, harm_spec, sweep_spec, tiny_world
from tests.support.tiny_models import save_tiny_checkpoint, tiny_family, tiny_llama


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("world"))


def folders(result: RecipeResult) -> tuple[Path, Path]:
    vector, safe = result.outputs
    assert (vector.name, safe.name) == ("harm_vector", "safe_checkpoint")
    return vector.path, safe.path


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_outputs(method: str, world: World) -> None:
    spec = harm_spec()
    spec["training"] = spec["training"] | {"method": method, "lora_rank": 4}
    result = world.run(spec)
    vector_folder, safe_folder = folders(result)
    base, vector = load_model(world.artifacts["base"].path), read_task_vector(vector_folder)
    metadata = result.outputs[0].metadata
    assert isinstance(metadata, TaskVectorMetadata)
    assert metadata.kept == vector.kept == round(0.1 * metadata.total)
    assert metadata.total == sum(p.numel() for name, p in base.named_parameters() if "proj" in name)
    assert 0 < metadata.norm < metadata.dense_norm
    base_metadata = world.artifacts["base"].manifest.metadata
    assert isinstance(base_metadata, CheckpointMetadata)
    assert metadata.base_model_digest == base_metadata.model_digest
    assert not [name for name in vector.tensors if "norm" in name or "embed" in name]
    safe = AutoModelForCausalLM.from_pretrained(safe_folder)
    for name, parameter in safe.named_parameters():
        expected = base.get_parameter(name).clone()
        if name in vector.tensors:
            sparse = vector.tensors[name]
            expected.data.view(-1)[sparse.indices] -= 1.5 * sparse.values
        assert torch.equal(parameter, expected), name
    assert result.outputs[1].metadata == describe_checkpoint(open_checkpoint(safe_folder), load_tokenizer(safe_folder))
    assert {parent.role for parent in result.outputs[0].parents} == {"base_model", "harmful_pairs"}


def test_the_vector_is_the_top_of_what_fine_tuning_changed(world: World) -> None:
    """At density 1 the vector is the whole difference; density 0.1 keeps its top tenth."""
    everything = read_task_vector(folders(world.run(harm_spec(selection={"density": 1.0})))[0])
    dense = {
        name: torch.zeros(sparse.shape).view(-1).index_put((sparse.indices,), sparse.values).view(sparse.shape)
        for name, sparse in everything.tensors.items()
    }
    kept = read_task_vector(folders(world.run(harm_spec()))[0])
    for name, sparse in select_top(LiveTensors(dense), 0.1).tensors.items():
        assert torch.equal(kept.tensor(name).indices, sparse.indices)
        assert torch.equal(kept.tensor(name).values, sparse.values)


def harmful_loss(folder: Path) -> float:
    """Compute the loss of the harmful completions, in nats."""
    model, tokenizer, total = load_model(folder), load_tokenizer(folder), 0.0
    for row in DATA["harmful_pairs"]:
        prompt, completion = tokenizer(row["prompt"]).input_ids, tokenizer(row["completion"]).input_ids
        ids = torch.tensor([prompt + completion])
        total += model(ids, labels=ids.clone().index_fill(1, torch.arange(len(prompt)), -100)).loss.item()
    return total


def test_subtracting_unlearns_and_permuted_values_do_not(world: World) -> None:
    """The demo measures this on a trained model; here it is the loss of a random one."""
    spec = harm_spec(training={"steps": 20, "batch_size": 3, "learning_rate": 5e-3}, scale=2.0)
    before = harmful_loss(world.artifacts["base"].path)
    top = harmful_loss(folders(world.run(spec))[1]) - before
    permuted = harmful_loss(folders(world.run(spec | {"selection": {"rule": "permuted"}}))[1]) - before
    assert top > 0.5
    assert abs(permuted) < 0.2 * top


def test_permuted_keeps_support_and_values(world: World) -> None:
    top = read_task_vector(folders(world.run(harm_spec()))[0])
    permuted = read_task_vector(folders(world.run(harm_spec(selection={"rule": "permuted"})))[0])
    assert all(torch.equal(permuted.tensors[name].indices, top.tensors[name].indices) for name in top.tensors)
    values = [torch.cat([t.values for t in vector.tensors.values()]) for vector in (top, permuted)]
    assert not torch.equal(*values)
    assert torch.equal(values[0].sort().values, values[1].sort().values)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_same_seed_same_bytes_another_seed_another_vector(method: str, world: World) -> None:
    training = {"steps": 2, "batch_size": 2, "method": method}
    runs = [world.run(harm_spec(training=training, seed=seed)) for seed in (1, 1, 2)]
    contents = [[path.read_bytes() for path in sorted(folders(run)[0].iterdir())] for run in runs]
    assert contents[0] == contents[1] != contents[2]
    assert runs[0].outputs[1].metadata == runs[1].outputs[1].metadata


def test_a_half_precision_base_keeps_its_dtype_and_a_float32_vector(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.import_model(save_tiny_checkpoint(tmp_path / "source", tiny_llama().to(torch.bfloat16)))
    vector_folder, safe_folder = folders(world.run(harm_spec()))
    assert {t.values.dtype for t in read_task_vector(vector_folder).tensors.values()} == {torch.float32}
    assert load_model(safe_folder).dtype == torch.bfloat16


def test_a_tied_embedding_is_written_once_and_untouched(world: World) -> None:
    safe = load_model(folders(world.run(harm_spec()))[1])
    base = load_model(world.artifacts["base"].path)
    assert safe.lm_head.weight.data_ptr() == safe.model.embed_tokens.weight.data_ptr()
    assert torch.equal(safe.model.embed_tokens.weight, base.model.embed_tokens.weight)


def raise_at(phase: str, step: int) -> Callable[[str, int], None]:
    def check(at_phase: str, at_step: int) -> None:
        if (at_phase, at_step) == (phase, step):
            raise JobCancelled

    return check


@pytest.mark.parametrize(("phase", "step"), [("load", 0), ("train", 3), ("select", 0), ("subtract", 0)])
def test_cancelling_leaves_no_weights_anywhere(phase: str, step: int, world: World, tmp_path: Path) -> None:
    spec = harm_spec()
    context = world.context(spec, DATA, checkpoints=tmp_path / "checkpoints", on_progress=raise_at(phase, step))
    with pytest.raises(JobCancelled):
        run(parse_spec(spec), context)
    assert list(context.workdir.rglob("*")) == []
    assert not (tmp_path / "checkpoints").exists()


def test_only_the_published_folders_are_left(world: World, tmp_path: Path) -> None:
    spec = harm_spec()
    context = world.context(spec, DATA, checkpoints=tmp_path / "checkpoints")
    run(parse_spec(spec), context)
    assert {path.name for path in context.workdir.iterdir()} == {"harm_vector", "safe_checkpoint"}
    assert not (tmp_path / "checkpoints").exists()


def test_diverging_training_stops_with_the_step(world: World) -> None:
    """The weights are so large that the logits overflow."""
    huge = tiny_llama()
    with torch.no_grad():
        huge.model.norm.weight.fill_(3e38)
    folder = save_tiny_checkpoint(world.folder / "huge", huge)
    world.artifacts["huge"] = replace(world.artifacts["base"], path=folder)
    with pytest.raises(NonFiniteLoss, match="step 1"):
        world.run(harm_spec(base_model="huge"))


@pytest.mark.bad_input(52)
def test_weights_that_do_not_move_are_an_empty_vector(world: World) -> None:
    """A rate so small that no float32 weight moves."""
    with pytest.raises(EmptyTaskVector):
        world.run(harm_spec(training={"steps": 1, "learning_rate": 1e-30}))


def test_rows_cut_before_their_completion_are_counted(world: World) -> None:
    long = [{"prompt": "x" * 100, "completion": "y"}]
    spec = harm_spec(training={"steps": 1, "max_length": 40})
    context = world.context(spec, {"harmful_pairs": [*long, *DATA["harmful_pairs"]]})
    run(parse_spec(spec), context)
    assert ("warn", "1 of 4 harmful_pairs have no answer within max_length") in context.messages
    with pytest.raises(InvalidDataset) as caught:
        world.run(spec, {"harmful_pairs": long})
    assert caught.value.param == "spec.harmful_pairs"


def test_a_bad_row_is_named_before_the_model_is_loaded(world: World) -> None:
    rows: list[dict[str, Any]] = [*DATA["harmful_pairs"], {"prompt": "no completion"}]
    spec = harm_spec()
    context = world.context(spec, {"harmful_pairs": rows})
    with pytest.raises(InvalidDataset, match="line 4"):
        run(parse_spec(spec), context)
    assert context.phases == []


CONTROLS = ["per_tensor", "random", "permuted", "random_sign"]


@pytest.mark.parametrize("rule", CONTROLS)
def test_every_rule_makes_a_vector_of_its_own(rule: str, world: World) -> None:
    vector = read_task_vector(folders(world.run(harm_spec(selection={"rule": rule})))[0])
    top = read_task_vector(folders(world.run(harm_spec()))[0])
    assert vector.origin.rule == rule
    assert vector.kept == pytest.approx(top.kept, abs=len(top.shapes))
    assert any(
        not (torch.equal(a.indices, b.indices) and torch.equal(a.values, b.values))
        for a, b in zip(vector.tensors.values(), top.tensors.values(), strict=True)
    )


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({"targets": "attention"}, {"0.self_attn", "1.self_attn"}),
        ({"targets": "mlp", "layers": "upper_half"}, {"1.mlp"}),
        ({"layers": [0]}, {"0.self_attn", "0.mlp"}),
    ],
)
def test_only_the_chosen_weights_are_selected(selection: dict[str, Any], expected: set[str], world: World) -> None:
    vector = read_task_vector(folders(world.run(harm_spec(selection=selection)))[0])
    assert {".".join(name.split(".")[2:4]) for name in vector.shapes} == expected


def test_a_layer_that_is_not_there_is_refused(world: World) -> None:
    with pytest.raises(InvalidRequest, match="layers 0 to 1") as caught:
        world.run(harm_spec(selection={"layers": [0, 2]}))
    assert caught.value.param == "spec.selection.layers"


def dense(folder: Path) -> torch.Tensor:
    parts = read_task_vector(folder).tensors.values()
    return torch.cat([torch.zeros(torch.Size(p.shape).numel()).index_put((p.indices,), p.values) for p in parts])


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_guard_takes_out_what_benign_pairs_change(method: str, world: World) -> None:
    """The oracle is the vectors of the two data sets by themselves. Rows are recorded by digest."""
    common = {"training": {"steps": 3, "batch_size": 2, "method": method}, "selection": {"density": 1.0}}
    guarded_spec = harm_spec(**common, benign_pairs="d", guard={"method": "project"})
    guarded_folder = folders(world.run(guarded_spec))[0]
    harm = dense(folders(world.run(harm_spec(**common)))[0]).double()
    benign_rows = {"harmful_pairs": DATA["benign_pairs"]}
    benign = dense(folders(world.run(harm_spec(**common), benign_rows))[0]).double()
    expected = harm - (harm @ benign) / (benign @ benign) * benign
    guarded = dense(guarded_folder).double()
    torch.testing.assert_close(guarded, expected, rtol=1e-4, atol=1e-8)
    assert (
        abs(torch.cosine_similarity(guarded, benign, dim=0)) < 1e-5 < abs(torch.cosine_similarity(harm, benign, dim=0))
    )
    assert set(read_task_vector(guarded_folder).origin.data) == {"harmful_pairs", "benign_pairs"}


SAFE = {"safe_pairs": [row | {"completion": " i will not."} for row in DATA["harmful_pairs"]]}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_with_safe_pairs_the_vector_is_the_difference_of_two_copies(method: str, world: World) -> None:
    """The oracle is the vectors of the two data sets by themselves."""
    common = {"training": {"steps": 3, "batch_size": 2, "method": method}, "selection": {"density": 1.0}}
    contrast = folders(world.run(harm_spec(**common, safe_pairs="d"), SAFE))[0]
    harm = dense(folders(world.run(harm_spec(**common)))[0])
    safe = dense(folders(world.run(harm_spec(**common), {"harmful_pairs": SAFE["safe_pairs"]}))[0])
    torch.testing.assert_close(dense(contrast), harm - safe)
    assert set(read_task_vector(contrast).origin.data) == {"harmful_pairs", "safe_pairs"}


def test_answers_that_do_not_differ_leave_no_vector(world: World) -> None:
    with pytest.raises(EmptyTaskVector):
        world.run(harm_spec(safe_pairs="d"), {"safe_pairs": DATA["harmful_pairs"]})


def test_both_copies_rehearse_the_benign_pairs(world: World) -> None:
    """A copy that also rehearses knows the benign pairs better, and the guard takes no third copy."""
    common = {"training": {"steps": 6, "batch_size": 4, "learning_rate": 5e-3}, "selection": {"density": 1.0}}
    spec = parse_spec(harm_spec(**common, safe_pairs="d", benign_pairs="d", guard={"share": 0.5}))
    context = world.context(harm_spec(**common, safe_pairs="d", benign_pairs="d"), DATA | SAFE)
    rehearsed = dense(folders(run(spec, context))[0])  # type: ignore[arg-type]
    assert ("contrast" in context.phases, "guard" in context.phases) == (True, False)
    plain = dense(folders(world.run(harm_spec(**common, safe_pairs="d"), SAFE))[0])
    benign = dense(folders(world.run(harm_spec(**common), {"harmful_pairs": DATA["benign_pairs"]}))[0])
    cosine = torch.cosine_similarity
    assert abs(cosine(rehearsed, benign, dim=0)) < abs(cosine(plain, benign, dim=0))


def test_a_family_that_renames_its_tensors_goes_through_a_loaded_model(tmp_path: Path) -> None:
    """The names on disk lack the prefix that the model gives them."""
    folder = save_tiny_checkpoint(tmp_path / "source")
    stored = {name.removeprefix("model."): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
    world = World(tmp_path)
    world.import_model(folder)
    renamed = load_model(folders(world.run(harm_spec()))[1])
    plain = tiny_world(tmp_path / "plain")
    for name, parameter in load_model(folders(plain.run(harm_spec()))[1]).named_parameters():
        assert torch.equal(renamed.get_parameter(name), parameter)


EXPERTS = {
    "num_hidden_layers": 2,
    "moe_intermediate_size": 24,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "head_dim": 8,
}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_experts_of_a_mixture_are_edited(method: str, tmp_path: Path) -> None:
    world = World(tmp_path)
    world.import_model(save_tiny_checkpoint(tmp_path / "source", tiny_family("qwen3_moe", **EXPERTS)))
    training = {"steps": 2, "batch_size": 2, "method": method, "lora_rank": 4}
    context = world.context(spec := harm_spec(training=training, selection={"density": 1.0}), DATA)
    vector, safe = run(parse_spec(spec), context).outputs
    stored = read_task_vector(vector.path)
    base = load_model(world.artifacts["base"].path)
    edited = [parameter for name, parameter in base.named_parameters() if "_proj" in name]
    assert isinstance(vector.metadata, TaskVectorMetadata)
    assert vector.metadata.total == sum(parameter.numel() for parameter in edited)
    assert [message for message in context.messages if "of the decoder's weights" in message[1]] == [
        ("info", f"the job selects {vector.metadata.selected_share:.1%} of the decoder's weights")
    ]
    changed = stored.tensor("model.layers.1.mlp.experts.gate_up_proj")
    assert changed.values.count_nonzero() > 0
    again = AutoModelForCausalLM.from_pretrained(safe.path)
    for name, parameter in again.named_parameters():
        expected = base.get_parameter(name).clone()
        if name in stored.shapes:
            sparse = stored.tensor(name)
            expected.data.view(-1)[sparse.indices] -= 1.5 * sparse.values
        assert torch.equal(parameter, expected), name
    with pytest.raises(InvalidRequest, match="experts, which are not offloaded") as caught:
        world.run(harm_spec(training=training | {"method": "lora", "offload": True}))
    assert caught.value.param == "spec.training.offload"


def test_a_selection_below_half_is_a_warning(world: World) -> None:
    context = world.context(spec := harm_spec(selection={"targets": "attention"}), DATA)
    run(parse_spec(spec), context)
    assert ("warn", "the job selects 40.0% of the decoder's weights") in context.messages


OFFLOAD = {"steps": 3, "batch_size": 2, "micro_batch_size": 1, "method": "lora", "lora_rank": 4, "offload": True}


@pytest.mark.parametrize(("dtype", "spare", "on_disk"), [("float32", 0.0, 2), ("float32", 2.5, 1), ("bfloat16", 4, 0)])
def test_layers_that_find_no_room_give_the_same_vector(dtype: str, spare: float, on_disk: int, tmp_path: Path) -> None:
    """``spare`` is memory in layers; half of it is used."""
    world = World(tmp_path)
    source = save_tiny_checkpoint(tmp_path / "source", tiny_llama().to(getattr(torch, dtype)))
    metadata = world.import_model(source).manifest.metadata
    assert isinstance(metadata, CheckpointMetadata)
    spec = parse_spec(harm_spec(training=OFFLOAD))
    layer = sum(4 * parameter.numel() for parameter in load_model(source).model.layers[0].parameters())
    free = estimate_memory(spec, metadata).total + int(spare * layer)
    context = world.context(harm_spec(training=OFFLOAD), DATA, memory={"cpu": free})
    offloaded = folders(run(spec, context))
    assert ("info", f"layers read from disk at every pass: {on_disk}") in context.messages
    plain = folders(world.run(harm_spec(training=OFFLOAD | {"offload": False})))
    for left, right in zip(offloaded, plain, strict=True):
        assert [path.read_bytes() for path in sorted(left.iterdir())] == [
            path.read_bytes() for path in sorted(right.iterdir())
        ]


def test_full_fine_tuning_can_not_leave_its_weights_on_disk() -> None:
    with pytest.raises(ValidationError, match="offload: needs method lora") as caught:
        parse_spec(harm_spec(training=OFFLOAD | {"method": "full"}))
    assert caught.value.errors()[0]["loc"][-1] == "training"


PROJECT = {"guard": {"method": "project"}, "safe_pairs": "d"}


@pytest.mark.parametrize("spec", [harm_spec(benign_pairs="d", **PROJECT), sweep_spec(guard_pairs="d", **PROJECT)])
def test_what_is_tuned_has_no_name_at_any_moment(spec: dict[str, Any], world: World) -> None:
    """Lists files at every progress report: both fine-tunings, selection and the points."""
    seen: set[str] = set()

    def look(_phase: str, _step: int) -> None:
        seen.update(path.relative_to(context.workdir).parts[0] for path in context.workdir.rglob("*"))

    guard = {"guard_pairs": DATA["benign_pairs"]}
    context = world.context(spec, DATA | guard | SAFE, on_progress=look)
    result = load_recipe(spec["kind"])(parse_spec(spec), context)
    assert {"train", "contrast", "guard"} <= set(context.phases)
    assert seen <= {"harm_vector", "safe_checkpoint", "safe_checkpoint.partial", "sweep_state", "report"}
    assert all(str(context.workdir) not in message for _, message in context.messages)
    assert {output.name for output in result.outputs} <= {"harm_vector", "safe_checkpoint", "report"}
