"""An exported model as the outside world uses it: in a process with stock transformers and PEFT, without our code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

_PROGRAM = """
import gc, json, sys
gc.disable()  # most of this short life is imports, which leave no garbage
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

base, lora, ids, out = json.loads(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
if lora:
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, lora)
with torch.no_grad():
    save_file({"logits": model.eval()(torch.tensor([ids])).logits}, out)
assert not [name for name in sys.modules if name.startswith("armature")]
"""


def stock_logits(base: Path, lora: Path | None, ids: Sequence[int], scratch: Path) -> torch.Tensor:
    """(T, V) of one sequence."""
    out = scratch / "logits.safetensors"
    arguments = json.dumps([str(base), lora and str(lora), list(ids), str(out)])
    subprocess.run([sys.executable, "-I", "-c", _PROGRAM, arguments], check=True, timeout=300)
    return load_file(out)["logits"][0]
