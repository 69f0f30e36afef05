"""Untrusted safetensors headers."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from armature.errors import InvalidSafetensors
from armature.modeling.checkpoints.safetensors import check_finite, read_header, tensor_sha256


def write(path: Path, header: Any, data: bytes = b"\0" * 16) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.randn(3, 5), "b": torch.ones(2, dtype=torch.bfloat16), "none": torch.ones(0, 4)}
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    entries = read_header(tmp_path / "m.safetensors")
    assert {name: found.shape for name, found in entries.items()} == {"a.weight": (3, 5), "b": (2,), "none": (0, 4)}
    assert entries["b"].dtype == "BF16"
    raw = (tmp_path / "m.safetensors").read_bytes()
    a = entries["a.weight"]
    assert raw[a.start : a.end] == tensors["a.weight"].numpy().tobytes()
    check_finite(entries)


BAD: dict[str, Any] = {
    "not an object": b"[1, 2]",
    "not JSON": b"{nope}  ",
    "not UTF-8": b'{"\xff": 1}',
    "deep nesting": b"[" * 100_000,
    "duplicate keys": b'{"a": {"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
    b'"a": {"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
    "no tensors": {"__metadata__": {"format": "pt"}},
    "traversal": {"../../etc/passwd": entry()},
    "dots": {"a..b": entry()},
    "NUL in the name": {"a\0": entry()},
    "a name of 10 kB": {"a" * 10_000: entry()},
    "float64": {"a": entry("F64", (2,))},
    "int8": {"a": entry("I8", (16,))},
    "unknown dtype": {"a": entry("Q7")},
    "dtype of another type": {"a": entry(["F32"])},
    "missing field": {"a": {"dtype": "F32", "shape": [4]}},
    "extra field": {"a": entry() | {"extra": 1}},
    "negative size": {"a": entry(shape=(-4,))},
    "true as a size": {"a": entry(shape=(True, 4))},
    "shape overflow": {"a": entry(shape=(2**62, 4))},
    "range too short": {"a": entry(offsets=(0, 12))},
    "range reversed": {"a": entry(offsets=(16, 0))},
    "beyond the file": {"a": entry(shape=(8,), offsets=(0, 32))},
    "trailing bytes": {"a": entry(shape=(2,), offsets=(0, 8))},
    "hole": {"a": entry(shape=(1,), offsets=(0, 4)), "b": entry(shape=(2,), offsets=(8, 16))},
    "overlap": {"a": entry(), "b": entry(shape=(2,), offsets=(8, 16))},
}


@pytest.mark.bad_input(30, 34, 35, 36)
@pytest.mark.parametrize("case", sorted(BAD))
def test_inconsistent_headers_are_refused(case: str, tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", BAD[case])
    with pytest.raises(InvalidSafetensors) as caught:
        read_header(path)
    assert caught.value.param == "model.safetensors"


@pytest.mark.bad_input(30)
@pytest.mark.parametrize("data", [b"", b"1234", struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 100) + b"{}"])
def test_impossible_header_lengths_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(data)
    with pytest.raises(InvalidSafetensors):
        read_header(tmp_path / "m.safetensors")


@pytest.mark.slow
@pytest.mark.bad_input(33)
def test_seven_hundred_thousand_tensors_are_refused_at_once(tmp_path: Path) -> None:
    header = {f"t{i}": entry(shape=(0,), offsets=(0, 0)) for i in range(700_000)}
    path = write(tmp_path / "m.safetensors", header, b"")
    started = time.perf_counter()
    with pytest.raises(InvalidSafetensors, match="header"):
        read_header(path)
    assert time.perf_counter() - started < 0.1


@pytest.mark.slow
def test_thirty_thousand_short_names_are_refused(tmp_path: Path) -> None:
    header = {f"{i}": entry(shape=(0,), offsets=(0, 0)) for i in range(30_000)}
    with pytest.raises(InvalidSafetensors, match="30000 tensors"):
        read_header(write(tmp_path / "m.safetensors", header, b""))


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_arbitrary_bytes_are_refused_and_never_crash(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "m.safetensors"
    path.write_bytes(data)
    with pytest.raises(InvalidSafetensors):
        read_header(path)


@pytest.mark.bad_input(31)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_non_finite_weights_are_found(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    weights = torch.zeros(1000, dtype=dtype)
    weights[777] = value
    save_file({"good": torch.ones(3), "bad": weights}, tmp_path / "m.safetensors")
    with pytest.raises(InvalidSafetensors, match="bad") as caught:
        check_finite(read_header(tmp_path / "m.safetensors"))
    assert caught.value.error_code == "non_finite_weights"


@pytest.mark.bad_input(32)
def test_one_flipped_bit_changes_the_hash(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.ones(100)}, path)
    found = read_header(path)["w"]
    before = tensor_sha256(found)
    raw = bytearray(path.read_bytes())
    raw[found.start + 17] ^= 1
    path.write_bytes(raw)
    assert tensor_sha256(read_header(path)["w"]) != before
