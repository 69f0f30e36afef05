"""base_model.import of GGUF files: what the blocks stand for, tokenizer and template from the file, bounded headers."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, dequantize, quantize
from safetensors.torch import load_file

from armature.contracts.artifacts import CheckpointMetadata
from armature.contracts.specs import parse_spec
from armature.errors import InvalidCheckpoint
from armature.modeling.checkpoints.loading import load_tokenizer
from armature.modeling.imports.gguf_header import MAX_HEADER_BYTES, read_gguf_header
from armature.modeling.imports.gguf_parts import find_gguf
from armature.modeling.tokenization.prompts import encode_chat
from armature_worker.recipes.base_model import run
from tests.support.gguf_files import gguf_llama, write_gguf
from tests.support.recipe_context import LocalContext
from tests.support.tiny_models import CHAT_TEMPLATE, byte_tokenizer
from tests.worker.recipes.test_import_cases import Imported

Q8, Q4 = GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_1


def values(weight: torch.Tensor, kind: GGMLQuantizationType) -> torch.Tensor:
    """The numbers that a quantised matrix stands for."""
    return torch.from_numpy(dequantize(quantize(weight.detach().numpy(), kind), kind))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dtype", "bits"), [(Q8, "float32", 8.5), (Q4, "bfloat16", 5.0)])
def test_weights_are_what_the_blocks_stand_for(
    kind: GGMLQuantizationType, dtype: str, bits: float, source: Path
) -> None:
    model = gguf_llama()
    write_gguf(source / "tiny.gguf", model, CHAT_TEMPLATE, kind)
    imported = Imported(source, dtype=dtype)
    weights = load_file(imported.folder / "model.safetensors")
    assert weights.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        expected = parameter.detach() if parameter.dim() == 1 else values(parameter, kind)
        assert torch.equal(weights[name], expected.to(getattr(torch, dtype))), name
    metadata = imported.metadata
    assert isinstance(metadata, CheckpointMetadata)
    assert metadata.origin is not None
    assert (metadata.dtype, metadata.origin.format, metadata.origin.quantisation) == (dtype, "gguf", kind.name)
    assert metadata.origin.bits_per_weight == pytest.approx(bits, rel=0.05)
    assert imported.events[0].startswith(f"weights dequantised from gguf {kind.name}, ")
    tokenizer, own = load_tokenizer(imported.folder), byte_tokenizer(CHAT_TEMPLATE)
    dialogue = [{"role": "user", "content": "häß 1 <eos>"}]
    assert encode_chat(tokenizer, dialogue) == encode_chat(own, dialogue)
    assert (tokenizer.chat_template, tokenizer.eos_token_id) == (CHAT_TEMPLATE, 1)


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["by llama.cpp", "by bytes", "not at all", "a file alone"])
def test_parts_make_the_same_model(cut: str, source: Path, tmp_path: Path) -> None:
    model = gguf_llama()
    whole = source / "tiny.gguf"
    write_gguf(whole, model, shard_tensors=7 if cut == "by llama.cpp" else 0)
    if cut == "by llama.cpp":
        assert sorted(path.name for path in source.iterdir()) == [f"tiny-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    if cut == "by bytes":
        raw = whole.read_bytes()
        whole.unlink()
        for number in range(3):
            (source / f"tiny.gguf.part0{number}").write_bytes(raw[number * 50_000 : (number + 1) * 50_000])
        (source / "tiny.gguf.part02").write_bytes(raw[100_000:])
    imported = Imported(whole if cut == "a file alone" else source)
    weights = load_file(imported.folder / "model.safetensors")
    for name, parameter in model.named_parameters():
        expected = parameter.detach() if parameter.dim() == 1 else values(parameter, Q8)
        assert torch.equal(weights[name], expected.bfloat16()), name


@pytest.mark.slow
def test_uploaded_parts_go_by_the_names_that_they_were_given(source: Path, tmp_path: Path) -> None:
    model = gguf_llama()
    write_gguf(source / "tiny.gguf", model, shard_tensors=7)
    blobs = {}
    for number, path in enumerate(sorted(source.iterdir())):
        blobs[path.name] = path.rename(tmp_path / f"blob{number}")
    named = {"type": "files", "files": {name: f"file_{path.name}" for name, path in blobs.items()}}
    spec = parse_spec({"kind": "base_model.import", "name": "tiny", "source": named})
    inputs = {f"files/{name}": path for name, path in blobs.items()}
    (workdir := tmp_path / "work").mkdir()
    folder = run(spec, LocalContext(workdir, files=inputs)).outputs[0].path
    weights = load_file(folder / "model.safetensors")
    up = model.model.layers[1].mlp.up_proj.weight
    assert torch.equal(weights["model.layers.1.mlp.up_proj.weight"], values(up, Q8).bfloat16())
    blobs["tiny-00002-of-00003.gguf"].write_bytes(b"GGUF")
    (again := tmp_path / "again").mkdir()
    with pytest.raises(InvalidCheckpoint, match="is not a GGUF file, or is truncated") as caught:
        run(spec, LocalContext(again, files=inputs))
    assert caught.value.param == "tiny-00002-of-00003.gguf"


@pytest.mark.slow
def test_one_of_several_is_named(source: Path) -> None:
    for seed, name in enumerate(("a.gguf", "b.gguf")):
        write_gguf(source / name, gguf_llama(seed))
    with pytest.raises(InvalidCheckpoint, match=r"several GGUF files \(a.gguf, b.gguf\)") as caught:
        find_gguf({path.name: path for path in source.iterdir()})
    assert caught.value.param == "spec.gguf_file"
    imported = Imported(source, gguf_file="b.gguf")
    weights = load_file(imported.folder / "model.safetensors")
    norm = gguf_llama(1).model.layers[1].mlp.up_proj.weight
    assert torch.equal(weights["model.layers.1.mlp.up_proj.weight"], values(norm, Q8).bfloat16())


@pytest.mark.parametrize(
    ("names", "wanted", "reason"),
    [
        (["a.gguf"], "b.gguf", "no GGUF file b.gguf"),
        (["m-00001-of-00003.gguf", "m-00003-of-00003.gguf"], None, "not complete"),
        (["m.gguf.part01", "m.gguf.part03"], None, "not complete"),
        (["m.gguf.part02", "m.gguf.part03"], None, "not complete"),
    ],
)
def test_parts_that_are_missing(names: list[str], wanted: str | None, reason: str) -> None:
    with pytest.raises(InvalidCheckpoint, match=reason):
        find_gguf({name: Path(name) for name in names}, wanted)


def put(position: int, layout: str, value: int) -> Callable[[bytearray], None]:
    def change(raw: bytearray) -> None:
        struct.pack_into(layout, raw, position, value)

    return change


def damage(text: bytes, offset: int, layout: str, value: int) -> Callable[[bytearray], None]:
    """Overwrite a number that stands ``offset`` bytes after the end of ``text``."""

    def change(raw: bytearray) -> None:
        struct.pack_into(layout, raw, raw.index(text) + len(text) + offset, value)

    return change


def cut_off(raw: bytearray) -> None:
    del raw[-100:]


DAMAGES: dict[str, tuple[Callable[[bytearray], None], str]] = {
    "magic": (put(0, "<I", 0), "is not a GGUF file"),
    "version": (put(4, "<I", 1), "GGUF version 1"),
    "big-endian version": (put(4, ">I", 3), "little-endian"),
    "tensors": (put(8, "<Q", 1 << 62), "tensors and"),
    "no tensors": (put(8, "<Q", 0), "lists 0 tensors"),
    "values": (put(16, "<Q", 1 << 62), "values; allowed"),
    "length of a name": (put(24, "<Q", 1 << 62), "has a text of"),
    "text": (damage(b"general.architecture", 4, "<Q", 1 << 40), "has a text of"),
    "kind of value": (damage(b"llama.block_count", 0, "<I", 99), "unknown type 99"),
    "items": (damage(b"tokenizer.ggml.token_type", 8, "<Q", 1 << 60), "array of"),
    "items in bounds": (damage(b"tokenizer.ggml.token_type", 8, "<Q", 1 << 22), "is truncated"),
    "array of arrays": (damage(b"tokenizer.ggml.token_type", 4, "<I", 9), "items of type 9"),
    "length of a token": (damage(b"tokenizer.ggml.tokens", 16, "<Q", 1 << 63), "is truncated"),
    "dimensions": (damage(b"blk.0.attn_q.weight", 0, "<I", 1 << 31), "dimensions"),
    "rows": (damage(b"blk.0.attn_q.weight", 4, "<Q", 65), "impossible shape"),
    "size": (damage(b"blk.0.attn_q.weight", 12, "<Q", 1 << 60), "overlap|truncated"),
    "kind of tensor": (damage(b"blk.0.attn_q.weight", 20, "<I", 77), "unknown type 77"),
    "offset": (damage(b"blk.0.attn_q.weight", 24, "<Q", 1 << 50), "truncated"),
    "odd offset": (damage(b"blk.0.attn_q.weight", 24, "<Q", 33), "impossible shape or place"),
    "overlap": (damage(b"blk.0.attn_q.weight", 24, "<Q", 0), "overlap"),
    "end": (cut_off, "truncated"),
}


@pytest.mark.bad_input(38)
@pytest.mark.parametrize("case", sorted(DAMAGES))
def test_headers_are_bounded(case: str, tmp_path: Path) -> None:
    change, reason = DAMAGES[case]
    path = tmp_path / "tiny.gguf"
    write_gguf(path, gguf_llama())
    raw = bytearray(path.read_bytes())
    change(raw)
    path.write_bytes(raw)
    with pytest.raises(InvalidCheckpoint, match=reason) as caught:
        read_gguf_header(path)
    assert caught.value.param == "tiny.gguf"


def test_a_header_without_end_is_refused(tmp_path: Path) -> None:
    """A sparse file: its values would take all memory."""
    path = tmp_path / "tiny.gguf"
    count = 1 << 22
    value = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 10, count)
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 1, 4000))
        for _ in range(8):
            file.write(value)
            file.seek(8 * count, 1)
        file.truncate(2 * MAX_HEADER_BYTES)
    with pytest.raises(InvalidCheckpoint, match=f"header of more than {MAX_HEADER_BYTES} bytes"):
        read_gguf_header(path)


@pytest.mark.parametrize(
    ("text", "kind", "value", "reason"),
    [
        (b"llama.block_count", "<I", 1000, "parameters; its tensors have"),
        (b"llama.block_count", "<I", 1 << 30, "num_hidden_layers = 1073741824 is out of range"),
        (b"llama.embedding_length", "<I", 1 << 31, "hidden_size"),
    ],
)
def test_configs_that_the_tensors_do_not_bear_out(
    text: bytes, kind: str, value: int, reason: str, source: Path
) -> None:
    path = source / "tiny.gguf"
    write_gguf(path, gguf_llama())
    raw = bytearray(path.read_bytes())
    damage(text, 4, kind, value)(raw)
    path.write_bytes(raw)
    with pytest.raises(InvalidCheckpoint, match=reason):
        Imported(source)
