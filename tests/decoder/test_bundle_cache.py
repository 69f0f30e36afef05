"""Bundles load once, strictly and concurrently; they are leased, evicted, drained and retried."""

from __future__ import annotations

import gc
import queue
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from armature.contracts.artifacts import ArtifactRef
from armature.contracts.profiles import ProfileManifest
from armature.contracts.specs.arm import AdapterShape
from armature.errors import (
    AdapterBaseMismatch,
    ArtifactCorrupt,
    InsufficientMemory,
    InvalidAdapter,
    ModelTooLarge,
    ModelUnloadable,
    TokenizerMismatch,
    Unavailable,
)
from armature.inference.batch import GuidedBatch, Sampled, sample_sequences
from armature.inference.lean.model import LeanModel
from armature.inference.model import BackendName
from armature.inference.request import Guide, GuidedRequest
from armature.inference.shared_weights import SharedWeights
from armature.storage.artifacts import blob_key, read_manifest
from armature.storage.base import ArtifactStore
from armature_decoder.bundles.bundle import BUNDLE_TRANSITIONS, check_move
from armature_decoder.engine.request import EngineRequest, Event, Failed
from tests.support.bundle_caches import WAIT, WORKING, Caches, CountingStore, failure, ready, use
from tests.support.generate import generate_guided
from tests.support.processes import wait_until
from tests.support.serving import PublishedBundle, publish_bundle
from tests.support.tensors import default_dtype

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CountingStore:
    return CountingStore(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def bundles(store: ArtifactStore, tmp_path_factory: pytest.TempPathFactory) -> list[PublishedBundle]:
    workdir = tmp_path_factory.mktemp("bundles")
    return [publish_bundle(store, workdir, seed=seed) for seed in (1, 2, 3)]


@pytest.fixture
def caches(store: ArtifactStore, tmp_path: Path) -> Iterator[Caches]:
    caches = Caches(store, tmp_path / "disk")
    yield caches
    caches.close()


def test_a_loaded_bundle_generates_as_before_it_was_published(caches: Caches, bundles: list[PublishedBundle]) -> None:
    cache = caches.make()
    runtime = use(cache, bundles[0].manifest)
    request = GuidedRequest((7, 8, 9), 12, seed=3, guide=Guide((0.2, 0.3, 0.5), 3.0, 5.0))
    assert generate_guided(runtime.loaded.model, [request]) == generate_guided(bundles[0].reference, [request])
    assert runtime.loaded.context_length == 256
    assert cache.used_bytes() > WORKING.kv + WORKING.prefixes
    assert cache.state(bundles[0].manifest) == "ready"


@pytest.mark.parametrize("backend", ["lean", "hf"])
def test_a_load_does_not_depend_on_torchs_default_dtype(
    caches: Caches, bundles: list[PublishedBundle], backend: BackendName
) -> None:
    with default_dtype(torch.bfloat16):
        model = use(caches.make(backend=backend), bundles[0].manifest).loaded.model
    request = GuidedRequest((7, 8, 9), 12, seed=3, guide=Guide((0.2, 0.3, 0.5), 3.0, 5.0), top_logprobs=3)
    (found,), (expected,) = (sample_sequences(model, [request]) for model in (model, bundles[0].reference))
    for one, other in zip(found, expected, strict=True):
        assert one.token == other.token
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)


def test_requests_share_a_load_and_bundles_a_base_download(
    caches: Caches, store: CountingStore, bundles: list[PublishedBundle]
) -> None:
    store.reads.clear()
    cache = caches.make()
    leases = [cache.lease(bundle.manifest) for bundle in bundles[:2] for _ in range(8)]
    assert len({id(ready(lease)) for lease in leases}) == 2
    base = read_manifest(store, bundles[0].manifest.base)
    weights = next(file for file in base.files if file.path == "model.safetensors")
    assert bundles[0].manifest.base == bundles[1].manifest.base
    assert store.reads.count(blob_key("ten_a", weights.sha256)) == 1


def test_guidance_defaults_do_not_make_another_bundle(caches: Caches, bundles: list[PublishedBundle]) -> None:
    cache, manifest = caches.make(), bundles[0].manifest
    softer = manifest.model_copy(update={"guidance": manifest.guidance.model_copy(update={"guidance_weight": 0.5})})
    assert softer.digest() != manifest.digest()
    assert use(cache, manifest) is use(cache, softer)


def test_the_least_recently_used_idle_bundle_is_evicted(caches: Caches, bundles: list[PublishedBundle]) -> None:
    one, two, three = (bundle.manifest for bundle in bundles)
    size = _size(caches, one)
    cache = caches.make(memory=2 * size + size // 2)
    use(cache, one)
    held = cache.lease(two)
    ready(held)
    use(cache, one)
    use(cache, three)  # two was used before one, and is leased
    assert [cache.state(m) for m in (one, two, three)] == ["absent", "ready", "ready"]
    assert cache.used_bytes() == 2 * size
    held.release()
    held = [cache.lease(two), cache.lease(three)]
    assert isinstance(failure(cache, one), InsufficientMemory)
    assert [cache.state(m) for m in (two, three)] == ["ready", "ready"]
    for lease in held:
        lease.release()
    assert cache.used_bytes() == 2 * size


def test_a_bundle_that_can_never_fit_says_so(caches: Caches, bundles: list[PublishedBundle]) -> None:
    manifest = bundles[0].manifest
    size = _size(caches, manifest)
    cache = caches.make(memory=size - 1)
    cache.preload(manifest, may_evict=False)
    wait_until(lambda: cache.state(manifest) == "failed")
    assert cache.status(manifest).reason == f"the model needs {size} bytes; this decoder may use {size - 1} in all"
    with pytest.raises(ModelTooLarge) as caught:
        cache.lease(manifest)
    assert (caught.value.status, caught.value.retryable) == (503, False)


def test_a_request_is_not_told_what_only_the_operator_can_mend(caches: Caches, bundles: list[PublishedBundle]) -> None:
    manifest = bundles[0].manifest
    wrong = manifest.model_copy(update={"arm": manifest.base})
    cache = caches.make()
    reason = failure(cache, wrong).message
    assert cache.status(wrong) == ("failed", reason)
    with pytest.raises(ModelUnloadable) as caught:
        cache.lease(wrong)
    assert reason not in caught.value.message


def test_files_of_a_loaded_bundle_are_not_evicted(
    tmp_path: Path, store: CountingStore, bundles: list[PublishedBundle]
) -> None:
    one, two = (bundle.manifest for bundle in bundles[:2])
    roomy = Caches(store, tmp_path / "roomy")
    use(roomy.make(), one)
    size = roomy.disk.used_bytes
    roomy.made[0].close()
    caches = Caches(store, tmp_path / "narrow", size + size // 20)
    cache = caches.make(retry=0.1)
    use(cache, one)
    assert failure(cache, two).error_code == "insufficient_disk"  # it shares the base, which is not counted twice
    assert cache.state(one) == "ready"
    cache.retain([two])
    wait_until(lambda: cache.retry_failed() or cache.state(two) == "ready", WAIT)
    cache.close()


def test_preloading_evicts_only_if_it_may(caches: Caches, bundles: list[PublishedBundle]) -> None:
    one, two = (bundle.manifest for bundle in bundles[:2])
    cache = caches.make(memory=_size(caches, one) * 3 // 2)
    use(cache, one)
    cache.preload(two, may_evict=False)
    wait_until(lambda: cache.state(two) == "absent")
    assert "are in use" in str(cache.status(two).reason)
    assert cache.status(one) == ("ready", None)
    use(cache, two)
    assert cache.status(two) == ("ready", None)
    assert cache.state(one) == "absent"
    cache.preload(one, may_evict=True)
    wait_until(lambda: cache.state(one) == "ready")


def test_a_bundle_that_no_profile_names_drains_after_its_last_request(
    caches: Caches, bundles: list[PublishedBundle]
) -> None:
    cache, manifest = caches.make(), bundles[0].manifest
    lease = cache.lease(manifest)
    runtime = ready(lease)
    cache.retain([])
    assert cache.counts() == {"draining": 1}
    assert runtime.engine._thread.is_alive()
    again = cache.lease(manifest)  # named again meanwhile: a fresh one, while the old one serves its last request
    assert ready(again) is not runtime
    lease.release()
    wait_until(lambda: cache.counts() == {"ready": 1})
    assert not runtime.engine._thread.is_alive()
    model = weakref.ref(ready(again).loaded.model.model)
    again.release()
    cache.retain([])
    wait_until(lambda: cache.counts() == {})
    assert cache.used_bytes() == 0
    gc.collect()
    assert model() is None  # nothing holds on to the weights


def test_corrupt_bytes_fail_one_bundle_until_they_are_repaired(
    tmp_path: Path, bundles: list[PublishedBundle], store: CountingStore
) -> None:
    own = CountingStore(tmp_path / "store")
    published = publish_bundle(own, tmp_path, seed=5)
    caches = Caches(own, tmp_path / "disk")
    cache = caches.make(retry=0.2)
    arm = read_manifest(own, published.manifest.arm or published.manifest.base)
    key = blob_key("ten_a", next(file for file in arm.files if file.path.endswith("safetensors")).sha256)
    whole = own.get_bytes(key)
    own.put_bytes(key, whole[:-1] + bytes([whole[-1] ^ 1]))
    good = published.manifest.model_copy(update={"arm": None, "attributes": [], "loss_form": None})
    use(cache, good)
    assert isinstance(failure(cache, published.manifest), ArtifactCorrupt)
    with pytest.raises(ModelUnloadable):
        cache.lease(published.manifest)
    assert cache.state(good) == "ready"
    own.put_bytes(key, whole)
    wait_until(lambda: cache.retry_failed() or cache.state(published.manifest) == "ready", WAIT)
    cache.close()


class LostDevice(GuidedBatch):
    """A real batch on a device that is lost as soon as a request runs, in the first engine only."""

    is_back = False
    is_lost = False

    def step(self) -> list[Sampled]:
        if not LostDevice.is_back:
            self.is_lost = LostDevice.is_back = True
            raise RuntimeError("device lost")
        return super().step()

    def clear(self) -> None:
        if self.is_lost:
            raise RuntimeError("device lost")
        super().clear()


def test_a_bundle_whose_engine_has_failed_is_loaded_again_after_its_back_off(
    caches: Caches, bundles: list[PublishedBundle]
) -> None:
    cache, manifest = caches.make(retry=0.5, batch=LostDevice), bundles[0].manifest
    lease = cache.lease(manifest)
    runtime, events = ready(lease), queue.Queue[Event]()
    request = EngineRequest("ten_a", GuidedRequest((7, 8), 4), events.put)
    runtime.engine.submit([request])
    heard = [events.get(timeout=WAIT) for _ in range(2)]
    assert isinstance(heard[1], Failed)
    wait_until(lambda: runtime.engine.has_failed)
    assert cache.state(manifest) == "failed"
    with pytest.raises(Unavailable, match="has failed"):
        cache.lease(manifest)
    assert cache.counts() == {"failed": 1, "draining": 1}
    lease.release()
    wait_until(lambda: cache.retry_failed() or cache.state(manifest) == "ready", WAIT)
    assert use(cache, manifest) is not runtime
    wait_until(lambda: cache.counts() == {"ready": 1})


def test_a_load_that_fails_as_expected_is_logged_without_a_traceback(
    caches: Caches, bundles: list[PublishedBundle], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = bundles[0].manifest
    failure(caches.make(), manifest.model_copy(update={"arm": manifest.base}))
    said = "".join(capsys.readouterr())
    assert "bundle failed to load" in said
    assert "Traceback" not in said


def test_a_copy_damaged_on_disk_is_fetched_again(caches: Caches, bundles: list[PublishedBundle]) -> None:
    manifest = bundles[0].manifest
    assert manifest.arm is not None
    copy = caches.disk.fetch(manifest.arm).folder / "adapter_model.safetensors"
    copy.write_bytes(b"rotten")
    cache = caches.make(retry=0.1)
    failure(cache, manifest)
    wait_until(lambda: cache.retry_failed() or cache.state(manifest) == "ready", WAIT)


@pytest.mark.bad_input(27, 28)
def test_parts_made_for_other_models_are_refused(
    tmp_path: Path, caches: Caches, store: ArtifactStore, bundles: list[PublishedBundle]
) -> None:
    one, two = bundles[0].manifest, bundles[1].manifest
    foreign = publish_bundle(store, tmp_path, seed=100).manifest  # the same shapes, another base
    cache = caches.make()
    mismatched = [
        (one.model_copy(update={"arm": two.arm}), AdapterBaseMismatch),  # trained on another harm vector
        (one.model_copy(update={"base": foreign.base}), AdapterBaseMismatch),
        (one.model_copy(update={"arm": foreign.arm}), AdapterBaseMismatch),
        (_with_backbone(one, harm_scale=1.0), AdapterBaseMismatch),
        (_with_backbone(one, tokenizer_digest="0" * 64), TokenizerMismatch),
        (one.model_copy(update={"arm": one.base}), ArtifactCorrupt),  # not an adapter at all
    ]
    for manifest, expected in mismatched:
        assert isinstance(failure(cache, manifest), expected)
    assert cache.used_bytes() == 0


@pytest.mark.parametrize("damaged", ["adapter", "base"])
@pytest.mark.parametrize("backend", ["hf", "lean"])
def test_the_probe_is_repeated_on_the_back_end_that_serves(
    caches: Caches, bundles: list[PublishedBundle], monkeypatch: pytest.MonkeyPatch, backend: BackendName, damaged: str
) -> None:
    run = SharedWeights.run_in_float32

    def careless(base: SharedWeights, modules: PreTrainedModel) -> AbstractContextManager[PreTrainedModel | LeanModel]:
        with torch.no_grad():
            for name, parameter in modules.named_parameters():
                if damaged == "adapter" and "pblora_B" in name:
                    parameter.zero_()
                if damaged == "base" and "embed_tokens" in name:
                    parameter.mul_(1.1)
        return run(base, modules)

    use(caches.make(), bundles[0].manifest)
    monkeypatch.setattr(SharedWeights, "run_in_float32", careless)
    error = failure(caches.make(backend=backend), bundles[0].manifest)
    assert isinstance(error, InvalidAdapter if damaged == "adapter" else AdapterBaseMismatch), error


@pytest.mark.bad_input(29)
def test_an_adapter_of_another_shape_replaces_the_first(
    tmp_path: Path, caches: Caches, store: ArtifactStore, bundles: list[PublishedBundle]
) -> None:
    shape = AdapterShape(layers="upper_half", targets="mlp", rank_shared=2, rank_conditioned=3)
    other = publish_bundle(store, tmp_path, seed=1, shape=shape)
    assert other.manifest.base == bundles[0].manifest.base
    cache = caches.make()
    for bundle in (bundles[0], other, bundles[0]):
        runtime = use(cache, bundle.manifest)
        request = GuidedRequest((7, 8, 9), 12, seed=3, guide=Guide((0.2, 0.3, 0.5), 3.0, 5.0))
        assert generate_guided(runtime.loaded.model, [request]) == generate_guided(bundle.reference, [request])
    assert cache.counts() == {"ready": 2}


def test_a_slow_download_delays_no_other_bundle(tmp_path: Path, caches: Caches, bundles: list[PublishedBundle]) -> None:
    gate = threading.Event()

    class SlowStore(CountingStore):
        def get_file(self, key: str, path: Path) -> None:
            if key == slow_key:
                gate.wait(WAIT)
            super().get_file(key, path)

    store = SlowStore(caches.disk._store._root)
    slow = bundles[2].manifest
    files = read_manifest(store, slow.arm or slow.base).files
    slow_key = blob_key("ten_a", next(file.sha256 for file in files if file.path.endswith("safetensors")))
    own = Caches(store, tmp_path / "slow-disk")
    cache = own.make()
    waiting = cache.lease(slow)
    use(cache, bundles[0].manifest)
    assert cache.state(slow) == "downloading"
    gate.set()
    ready(waiting)
    cache.close()


def test_the_table_of_states_is_closed_and_refuses_shortcuts() -> None:
    assert set().union(*BUNDLE_TRANSITIONS.values()) <= BUNDLE_TRANSITIONS.keys()
    with pytest.raises(RuntimeError):
        check_move("absent", "ready")


def test_a_copy_without_its_manifest_is_fetched_again(caches: Caches, bundles: list[PublishedBundle]) -> None:
    ref: ArtifactRef = bundles[0].manifest.base
    artifact = caches.disk.fetch(ref)
    artifact.folder.with_name(f"{ref.digest}.json").unlink()
    (artifact.folder / "config.json").unlink()
    assert (caches.disk.fetch(ref).folder / "config.json").is_file()


def _size(caches: Caches, manifest: ProfileManifest) -> int:
    cache = caches.make()
    use(cache, manifest)
    return cache.used_bytes()


def _with_backbone(manifest: ProfileManifest, **changes: object) -> ProfileManifest:
    return manifest.model_copy(update={"backbone": manifest.backbone.model_copy(update=changes)})
