"""Temporary files without a name: what is read is what was written, and nobody else can open them."""

import torch

from armature.algorithms.spools import Spool, SpooledTensors
from armature.algorithms.tensor_sources import BLOCK, LiveTensors


def test_a_spooled_source_is_its_source_in_float32(tmp_path):
    tensors = {
        "big": torch.randn(BLOCK + 300),
        "half": torch.randn(7, 5).bfloat16(),
        "none": torch.empty(0),
        "one": torch.ones(()),
    }
    spooled = SpooledTensors(LiveTensors(tensors), tmp_path)
    assert spooled.shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        flat = tensor.float().reshape(-1)
        assert torch.equal(spooled.read(name, 0, len(flat)), flat)
    assert torch.equal(spooled.read("big", BLOCK - 5, BLOCK + 5), tensors["big"][BLOCK - 5 : BLOCK + 5])
    assert spooled.read("half", 3, 4).tolist() == [float(tensors["half"][0, 3])]


def test_nothing_spooled_has_a_name(tmp_path):
    spool = Spool(tmp_path)
    spool.append("w", 0, torch.tensor([1, 2]), torch.tensor([3.0, 4.0]))
    spooled = SpooledTensors(LiveTensors({"w": torch.ones(9)}), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert [part.tolist() for part in spool.read("w", 0)] == [[1, 2], [3.0, 4.0]]
    assert spooled.read("w", 0, 9).sum() == 9
