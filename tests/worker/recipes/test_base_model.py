"""base_model.import: sources, refusals, outputs."""

from __future__ import annotations

import hashlib
import json
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from armature.contracts.artifacts import CheckpointMetadata
from armature.contracts.specs import parse_spec
from armature.errors import (
    ArmatureError,
    ImportNotAllowed,
    InvalidCheckpoint,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from armature.settings import ImportSettings
from armature_worker.context.ports import RecipeResult
from armature_worker.recipes.base_model import run
from tests.support.gguf_files import gguf_llama, write_gguf
from tests.support.recipe_context import LocalContext
from tests.support.tiny_models import CHAT_TEMPLATE, save_tiny_checkpoint, tiny_llama


def import_folder(source: Path, workdir: Path, root: Path | None = None) -> RecipeResult:
    workdir.mkdir()
    spec = {"kind": "base_model.import", "name": "tiny", "source": {"type": "folder", "path": str(source)}}
    return run(parse_spec(spec), LocalContext(workdir, imports=ImportSettings(roots=[root or source])))


def import_files(files: dict[str, Path], workdir: Path) -> RecipeResult:
    workdir.mkdir()
    source = {"type": "files", "files": {name: f"file_{index}" for index, name in enumerate(files)}}
    inputs = {f"files/{name}": path for name, path in files.items()}
    spec = parse_spec({"kind": "base_model.import", "name": "tiny", "source": source})
    return run(spec, LocalContext(workdir, files=inputs))


def metadata_of(result: RecipeResult) -> CheckpointMetadata:
    metadata = result.outputs[0].metadata
    assert isinstance(metadata, CheckpointMetadata)
    return metadata


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny_checkpoint(tmp_path / "source")


def test_folder(source: Path, tmp_path: Path) -> None:
    (source / "README.md").write_text("left behind")
    result = import_folder(source, tmp_path / "work")
    output = result.outputs[0]
    assert (result.register_as, output.name) == ("tiny", "checkpoint")
    assert {path.name for path in output.path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    model = AutoModelForCausalLM.from_pretrained(output.path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny_llama().parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(output.path).decode([75, 76]) == "ij"


def test_uploaded_files_give_the_same_model(source: Path, tmp_path: Path) -> None:
    files = {path.name: tmp_path / f"blob{index}" for index, path in enumerate(sorted(source.iterdir()))}
    for name, blob in files.items():
        blob.write_bytes((source / name).read_bytes())
    uploaded = import_files(files, tmp_path / "a")
    assert metadata_of(uploaded) == metadata_of(import_folder(source, tmp_path / "b"))
    assert {parent.role for parent in uploaded.outputs[0].parents} == {f"files/{name}" for name in files}


def test_import_is_repeatable_to_the_byte(source: Path, tmp_path: Path) -> None:
    first, second = (import_folder(source, tmp_path / name).outputs[0].path for name in "ab")
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (first, second)]
    assert contents[0] == contents[1]


def test_sampling_defaults_of_the_model_are_dropped(source: Path, tmp_path: Path) -> None:
    (source / "generation_config.json").write_text('{"eos_token_id": [1, 2], "temperature": 7.0, "do_sample": false}')
    folder = import_folder(source, tmp_path / "work").outputs[0].path
    kept = json.loads((folder / "generation_config.json").read_text())
    assert kept["eos_token_id"] == [1, 2]
    assert "temperature" not in kept


def test_odd_sampling_defaults_do_no_harm(source: Path, tmp_path: Path) -> None:
    (source / "generation_config.json").write_text('{"temperature": {"a": [[]]}, "max_length": "x", "eos_token_id": 1}')
    folder = import_folder(source, tmp_path / "work").outputs[0].path
    assert json.loads((folder / "generation_config.json").read_text()) == {"eos_token_id": 1}


def test_a_tensor_of_another_shape_is_named(source: Path, tmp_path: Path) -> None:
    with_weights(source, transpose_one)
    with pytest.raises(InvalidCheckpoint, match=r"layers\.0\.mlp\.up_proj\.weight is \[32, 48\]") as caught:
        import_folder(source, tmp_path / "work")
    assert "ignore_mismatched_sizes" not in caught.value.message


def test_links_inside_the_root_are_followed_and_out_of_it_refused(source: Path, tmp_path: Path) -> None:
    hub = tmp_path / "root"
    (hub / "blobs").mkdir(parents=True)
    snapshot = hub / "snapshot"
    snapshot.mkdir()
    for path in source.iterdir():
        (hub / "blobs" / path.name).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(hub / "blobs" / path.name)
    import_folder(snapshot, tmp_path / "a", root=hub)
    with pytest.raises(InvalidCheckpoint, match="link out of"):
        import_folder(snapshot, tmp_path / "b", root=snapshot)


@pytest.mark.parametrize("path", ["{root}/../source", "/etc", "{root}/missing", "{root}/link"])
def test_folders_outside_the_roots_are_refused(path: str, source: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(source)
    with pytest.raises(NotFound if "missing" in path else ImportNotAllowed) as caught:
        import_folder(Path(path.format(root=root)), tmp_path / "work", root=root)
    assert caught.value.param == "spec.source.path"


def test_hub_is_off_by_default(tmp_path: Path) -> None:
    spec = parse_spec({"kind": "base_model.import", "name": "x", "source": {"type": "hub", "repo_id": "a/b"}})
    with pytest.raises(ImportNotAllowed):
        run(spec, LocalContext(tmp_path))


HUB_COMMIT = "c0ffee" * 6 + "beef"


class _Hub(BaseHTTPRequestHandler):
    """The part of the hub's HTTP interface that a snapshot download needs, on a folder."""

    folder: Path
    served: list[str]
    tokens: list[str]

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        if self.path.startswith("/api/models/org/tiny/tree/"):
            files = sorted(self.folder.iterdir())
            tree = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name} for f in files]
            body = json.dumps(tree).encode()
        elif self.path.startswith("/api/models/org/tiny/revision/nowhere"):
            return self.refuse("RevisionNotFound", 404)
        elif self.path.startswith("/api/models/org/broken"):
            return self.refuse("", 500)
        elif self.path.startswith("/api/models/org/tiny/"):
            names = [{"rfilename": path.name} for path in sorted(self.folder.iterdir())]
            body = json.dumps({"id": "org/tiny", "sha": HUB_COMMIT, "siblings": names}).encode()
        elif self.path.startswith(f"/org/tiny/resolve/{HUB_COMMIT}/"):
            name = self.path.rsplit("/", 1)[1]
            body = (self.folder / name).read_bytes()
            self.served.append(name)
        else:
            return self.refuse("RepoNotFound", 404)
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", HUB_COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def refuse(self, code: str, status: int) -> None:
        self.tokens.append(self.headers.get("Authorization", ""))
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def use_hub(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Do what the environment variable HF_ENDPOINT does, but after the library was imported."""
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub_tokens() -> list[str]:
    """The Authorization headers of refused requests."""
    return []


@pytest.fixture
def hub(source: Path, hub_tokens: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub on loopback with the repository org/tiny; yields the names of requested files."""
    served: list[str] = []
    handler = type("Hub", (_Hub,), {"folder": source, "served": served, "tokens": hub_tokens})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        use_hub(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        yield served
        server.shutdown()


def import_from_hub(repo_id: str, workdir: Path, revision: str = "main", **fields: Any) -> RecipeResult:
    workdir.mkdir()
    source = {"type": "hub", "repo_id": repo_id, "revision": revision}
    spec = {"kind": "base_model.import", "name": "x", "source": source} | fields
    return run(parse_spec(spec), LocalContext(workdir, imports=ImportSettings(hub=True)))


def test_hub_downloads_what_is_needed_and_no_pickles(hub: list[str], source: Path, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "modeling_tiny.py", "README.md"):
        (source / name).write_bytes(b"\x80\x02}.")
    result = import_from_hub("org/tiny", tmp_path / "work")
    assert not {"pytorch_model.bin", "modeling_tiny.py", "README.md"} & set(hub)
    for name in ("pytorch_model.bin", "modeling_tiny.py", "README.md"):
        (source / name).unlink()
    assert metadata_of(result) == metadata_of(import_folder(source, tmp_path / "folder"))


def test_a_hub_that_lacks_the_repository_or_does_not_answer(
    hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidRequest, match="org/other") as missing:
        import_from_hub("org/other", tmp_path / "a")
    assert missing.value.param == "spec.source.repo_id"
    use_hub(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(Unavailable):
        import_from_hub("org/tiny", tmp_path / "b")


def test_a_revision_that_the_repository_lacks_is_refused_at_once(hub: list[str], tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="org/tiny has no revision nowhere") as missing:
        import_from_hub("org/tiny", tmp_path / "a", revision="nowhere")
    assert missing.value.param == "spec.source.revision"
    assert hub == []


@pytest.mark.slow
def test_of_a_hubs_gguf_files_only_the_named_one_is_downloaded(hub: list[str], source: Path, tmp_path: Path) -> None:
    for path in list(source.iterdir()):
        path.unlink()
    for name in ("tiny.Q8_0.gguf", "tiny.Q4_1.gguf"):
        write_gguf(source / name, gguf_llama())
    with pytest.raises(InvalidCheckpoint, match="gguf_file names one") as caught:
        import_from_hub("org/tiny", tmp_path / "b")
    assert (caught.value.param, hub) == ("model.safetensors", [])
    result = import_from_hub("org/tiny", tmp_path / "a", gguf_file="tiny.Q8_0.gguf")
    assert set(hub) == {"tiny.Q8_0.gguf"}
    origin = metadata_of(result).origin
    assert origin is not None
    assert origin.quantisation == "Q8_0"


@pytest.mark.parametrize(
    ("repo_id", "revision"), [("org/other", "main"), ("org/tiny", "nowhere"), ("org/broken", "main")]
)
def test_hub_tokens_reach_neither_logs_nor_errors(
    repo_id: str,
    revision: str,
    hub: list[str],
    hub_tokens: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The token is sent to the hub, and is in no message, no log line at any level, and no chained error."""
    token = "hf_" + "Secret" * 6
    monkeypatch.setenv("HF_TOKEN", token)
    caplog.set_level("DEBUG")
    with pytest.raises(ArmatureError) as caught:
        import_from_hub(repo_id, tmp_path / "a", revision=revision)
    chain = "".join(traceback.format_exception(caught.value))
    assert hub_tokens[0] == f"Bearer {token}"
    assert token not in chain + caplog.text


def with_weights(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def set_nan(weights: dict[str, torch.Tensor]) -> None:
    weights["model.norm.weight"][0] = float("nan")


def rename_all(weights: dict[str, torch.Tensor]) -> None:
    for name in list(weights):
        weights[f"base_model.model.{name}"] = weights.pop(name)


def drop_one(weights: dict[str, torch.Tensor]) -> None:
    weights["spare"] = weights.pop("model.layers.1.mlp.up_proj.weight").clone()


def transpose_one(weights: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name].T.contiguous()


def shrink_vocabulary(folder: Path) -> None:
    smaller = tiny_llama(vocab_size=200)
    smaller.save_pretrained(folder)


def no_end(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["eos_token"]
    path.write_text(json.dumps(config))


BREAKS: dict[str, tuple[Any, str]] = {
    "NaN": (lambda f: with_weights(f, set_nan), "model.safetensors"),
    "prefixed keys": (lambda f: with_weights(f, rename_all), "model.safetensors"),
    "a missing tensor": (lambda f: with_weights(f, drop_one), "model.safetensors"),
    "a transposed tensor": (lambda f: with_weights(f, transpose_one), "model.safetensors"),
    "a pickle": (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04\x95"), "model.safetensors"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
    "a broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json"),
    "more ids than logits": (shrink_vocabulary, "tokenizer.json"),
    "no end of sequence": (no_end, "tokenizer_config.json"),
}


@pytest.mark.parametrize("case", sorted(BREAKS))
def test_refuses(case: str, source: Path, tmp_path: Path) -> None:
    change, param = BREAKS[case]
    change(source)
    with pytest.raises(InvalidCheckpoint) as caught:
        import_folder(source, tmp_path / "work")
    assert caught.value.param == param


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "takes too long"),
        ("{{ raise_exception('never') }}", "never"),
        ("{{ messages.missing.field }}", "no attribute"),
        ("{{ 'x' * 2000000 }}", "2000000 characters"),
        ("{% set a = 'x' * 1000000000 %}{% set b = a ~ a ~ a %}{{ b }}", "MemoryError|takes too long"),
    ],
)
def test_unusable_chat_templates_are_refused(template: str, reason: str, tmp_path: Path) -> None:
    source = save_tiny_checkpoint(tmp_path / "source", chat_template=template)
    with pytest.raises(InvalidCheckpoint, match=reason) as caught:
        import_folder(source, tmp_path / "work")
    assert caught.value.param == "chat_template.jinja"


def test_chat_template_is_kept(tmp_path: Path) -> None:
    source = save_tiny_checkpoint(tmp_path / "source", chat_template=CHAT_TEMPLATE)
    result = import_folder(source, tmp_path / "work")
    assert metadata_of(result).chat_template
    assert AutoTokenizer.from_pretrained(result.outputs[0].path).chat_template == CHAT_TEMPLATE


def test_every_error_is_of_the_taxonomy(source: Path, tmp_path: Path) -> None:
    """With any byte damaged, the job fails with an ArmatureError or the model is as good as before."""
    raw = (source / "model.safetensors").read_bytes()
    for index, position in enumerate((0, 3, 9, 40, 200)):
        damaged = bytearray(raw)
        damaged[position] ^= 0x55
        (source / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ArmatureError):
            import_folder(source, tmp_path / f"work{index}")
