"""Temporary files without a name: reads return what was written, and no path leads to it."""

import torch

from armature.algorithms.temp_file_tensors import TempFileCandidates, TempFileTensors
from armature.algorithms.tensor_sources import BLOCK, LiveTensors


def test_a_copied_source_is_its_source_in_float32(tmp_path):
    tensors = {
        "big": torch.randn(BLOCK + 300),
        "half": torch.randn(7, 5).bfloat16(),
        "none": torch.empty(0),
        "one": torch.ones(()),
    }
    copy = TempFileTensors(LiveTensors(tensors), tmp_path)
    assert copy.shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        flat = tensor.float().reshape(-1)
        assert torch.equal(copy.read(name, 0, len(flat)), flat)
    assert torch.equal(copy.read("big", BLOCK - 5, BLOCK + 5), tensors["big"][BLOCK - 5 : BLOCK + 5])
    assert copy.read("half", 3, 4).tolist() == [float(tensors["half"][0, 3])]


def test_the_files_have_no_name(tmp_path):
    candidates = TempFileCandidates(tmp_path)
    candidates.append("w", 0, torch.tensor([1, 2]), torch.tensor([3.0, 4.0]))
    copy = TempFileTensors(LiveTensors({"w": torch.ones(9)}), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert [part.tolist() for part in candidates.read("w", 0)] == [[1, 2], [3.0, 4.0]]
    assert copy.read("w", 0, 9).sum() == 9
