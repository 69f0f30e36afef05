"""Bundles on the same dense weights share them, whichever loads first, fails, is evicted or comes back."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from armature.contracts.artifacts import AdapterMetadata
from armature.contracts.profiles import ProfileManifest
from armature.errors import InvalidAdapter, InvalidCheckpoint
from armature.inference.model import BackendName
from armature.inference.request import Guide, GuidedRequest
from armature.modeling.checkpoints import loading
from armature.storage.artifacts import publish_folder, read_manifest
from armature.storage.local import LocalArtifactStore
from armature_decoder.bundles import loader
from armature_decoder.bundles.bundle import Runtime
from tests.support.bundle_caches import WAIT, Caches, failure, ready, use
from tests.support.generate import generate_guided
from tests.support.processes import wait_until
from tests.support.serving import PRODUCER, PublishedBundle, publish_bundle
from tests.support.tensors import new_tensors

pytestmark = pytest.mark.slow

REQUEST = GuidedRequest((7, 8, 9), 12, seed=3, guide=Guide((0.2, 0.3, 0.5), 3.0, 5.0))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def store(workdir: Path) -> LocalArtifactStore:
    return LocalArtifactStore(workdir / "store")


@pytest.fixture(scope="module")
def bundles(store: LocalArtifactStore, workdir: Path) -> list[PublishedBundle]:
    """Three ARMs on one base minus one harm vector."""
    return [publish_bundle(store, workdir, seed=1, arm_seed=seed) for seed in (11, 12, 13)]


@pytest.fixture(scope="module")
def other(store: LocalArtifactStore, workdir: Path) -> ProfileManifest:
    """On the same base minus another harm vector."""
    return publish_bundle(store, workdir, seed=2).manifest


@pytest.fixture
def caches(store: LocalArtifactStore, tmp_path: Path) -> Iterator[Caches]:
    caches = Caches(store, tmp_path / "disk")
    yield caches
    caches.close()


class Loads:
    """Counts loads of dense weights; they wait for the gate, and the first ``failing`` of them fail."""

    def __init__(self) -> None:
        self.count = 0
        self.failing = 0
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, *args: Any, **kwargs: Any) -> PreTrainedModel:
        self.count += 1
        self.gate.wait(WAIT)
        if self.count <= self.failing:
            raise InvalidCheckpoint("unreadable")
        return loading.load_safe_model(*args, **kwargs)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    loads = Loads()
    monkeypatch.setattr(loader, "load_safe_model", loads)
    return loads


def answer(runtime: Runtime) -> list[list[int]]:
    return generate_guided(runtime.loaded.model, [REQUEST])


def expected(bundle: PublishedBundle) -> list[list[int]]:
    return generate_guided(bundle.reference, [REQUEST])


def without_arm(manifest: ProfileManifest) -> ProfileManifest:
    return manifest.model_copy(update={"arm": None, "attributes": [], "loss_form": None})


def broken(store: LocalArtifactStore, workdir: Path, bundle: PublishedBundle) -> ProfileManifest:
    """With an adapter that does not match its probe, which shows only once it is in memory."""
    assert bundle.manifest.arm is not None
    metadata = read_manifest(store, bundle.manifest.arm).metadata
    assert isinstance(metadata, AdapterMetadata)
    readings = {
        dtype: reading.model_copy(update={"log_probs": [value - 2.0 for value in reading.log_probs]})
        for dtype, reading in metadata.canary.readings.items()
    }
    lying = metadata.model_copy(update={"canary": metadata.canary.model_copy(update={"readings": readings})})
    folder = workdir / "bundle-1-13" / "arm"
    _, ref = publish_folder(store, "ten_a", folder, metadata=lying, parents=[], producer=PRODUCER)
    return bundle.manifest.model_copy(update={"arm": ref})


@pytest.mark.parametrize("backend", ["hf", "lean"])
def test_a_second_arm_takes_its_adapter_and_no_more(
    caches: Caches, bundles: list[PublishedBundle], loads: Loads, backend: BackendName
) -> None:
    cache = caches.make(backend=backend)
    wanted = [expected(bundle) for bundle in bundles]
    with new_tensors() as taken:
        use(cache, without_arm(bundles[0].manifest))
        taken_by = [taken()]
        for bundle in bundles:
            use(cache, bundle.manifest)
            taken_by.append(taken())
        base, *adapters = [after - before for before, after in itertools.pairwise([0, *taken_by])]
        assert 0 < adapters[0] < base
        assert len(set(adapters)) == 1
        assert base <= cache.base_bytes + 256  # rotary frequencies and the like
        assert taken_by[-1] <= cache.used_bytes()
        assert [answer(use(cache, bundle.manifest)) for bundle in bundles] == wanted
        assert wanted[0] != wanted[1]
        cache.retain([])
        wait_until(lambda: cache.counts() == {})
        assert (cache.used_bytes(), cache.base_bytes) == (0, 0)
        assert taken() == 0
    assert loads.count == 1


def test_loads_at_the_same_time_load_the_base_once(
    caches: Caches, bundles: list[PublishedBundle], loads: Loads
) -> None:
    cache = caches.make()
    loads.gate.clear()
    leases = [cache.lease(bundle.manifest) for bundle in bundles]
    wait_until(lambda: cache.counts() == {"loading": 3}, WAIT)
    set_aside = cache.used_bytes()
    loads.gate.set()
    assert [answer(ready(lease)) for lease in leases] == [expected(bundle) for bundle in bundles]
    assert loads.count == 1
    assert cache.used_bytes() == set_aside  # the room for one base was set aside, too
    base, own = sizes(caches, bundles[0].manifest)
    assert set_aside == base + 3 * own


def test_a_failed_base_fails_its_waiting_bundles_and_is_retried(
    caches: Caches, bundles: list[PublishedBundle], loads: Loads
) -> None:
    cache = caches.make(retry=0.2)
    loads.failing = 2
    loads.gate.clear()
    leases = [cache.lease(bundle.manifest) for bundle in bundles[:2]]
    wait_until(lambda: cache.counts() == {"loading": 2}, WAIT)
    loads.gate.set()
    for lease in leases:
        assert isinstance(lease.settled.exception(WAIT), InvalidCheckpoint)
        lease.release()
    assert cache.used_bytes() == 0
    wait_until(lambda: cache.retry_failed() or cache.counts() == {"ready": 2}, WAIT)
    assert loads.count == 3


def test_a_failed_adapter_leaves_nothing_and_fails_no_other_bundle(
    caches: Caches, store: LocalArtifactStore, workdir: Path, bundles: list[PublishedBundle], loads: Loads
) -> None:
    bad = broken(store, workdir, bundles[2])
    cache = caches.make()
    wanted = expected(bundles[0])
    with new_tensors() as taken:
        assert isinstance(failure(cache, bad), InvalidAdapter)
        assert (cache.used_bytes(), taken()) == (0, 0)  # though it was in memory, and why it failed is remembered
        runtime = use(cache, bundles[0].manifest)
        alone = cache.used_bytes(), taken()
        cache.retain([bundles[0].manifest])  # forget the failure, and its back-off
        assert isinstance(failure(cache, bad), InvalidAdapter)
        assert (cache.used_bytes(), taken()) == alone
        assert answer(runtime) == wanted
        del runtime
    assert loads.count == 2


def test_an_evicted_bundle_leaves_the_base_to_the_others(
    caches: Caches, bundles: list[PublishedBundle], other: ProfileManifest, loads: Loads
) -> None:
    one, two, three = (bundle.manifest for bundle in bundles)
    base, own = sizes(caches, one)
    cache = caches.make(memory=base + 2 * own + base // 2)
    loads.count = 0
    for manifest in (one, two, one, three):  # two was used before one
        use(cache, manifest)
    assert [cache.state(manifest) for manifest in (one, two, three)] == ["ready", "absent", "ready"]
    assert (loads.count, cache.used_bytes()) == (1, base + 2 * own)
    use(cache, other)  # a base of its own: both have to go, and theirs with the second
    assert cache.counts() == {"ready": 1}
    assert (loads.count, cache.used_bytes(), cache.base_bytes) == (2, base + own, base)


def test_a_base_survives_evicting_its_bundle_for_the_next(
    caches: Caches, bundles: list[PublishedBundle], loads: Loads
) -> None:
    one, two = (bundle.manifest for bundle in bundles[:2])
    base, own = sizes(caches, one)
    cache = caches.make(memory=base + own)
    loads.count = 0
    use(cache, one)
    assert answer(use(cache, two)) == expected(bundles[1])
    assert [cache.state(one), cache.state(two)] == ["absent", "ready"]
    assert (loads.count, cache.used_bytes()) == (1, base + own)


def test_a_bundle_on_a_loaded_base_needs_room_for_its_adapter_only(
    caches: Caches, bundles: list[PublishedBundle], other: ProfileManifest
) -> None:
    one, two = (bundle.manifest for bundle in bundles[:2])
    base, own = sizes(caches, one)
    cache = caches.make(memory=base + 2 * own)
    use(cache, one)
    cache.preload(other, may_evict=False)
    wait_until(lambda: cache.state(other) == "absent")
    cache.preload(two, may_evict=False)
    wait_until(lambda: cache.state(two) == "ready")
    assert cache.counts() == {"ready": 2, "absent": 1}


def test_a_new_version_shares_the_base_of_the_draining_one(
    caches: Caches, bundles: list[PublishedBundle], loads: Loads
) -> None:
    before, after = bundles[0].manifest, bundles[1].manifest
    cache = caches.make()
    for _ in range(3):
        held = cache.lease(before)
        runtime = ready(held)
        cache.retain([after])
        assert answer(use(cache, after)) == expected(bundles[1])
        assert cache.counts() == {"draining": 1, "ready": 1}
        assert answer(runtime) == expected(bundles[0])  # the last request finishes on what it started on
        held.release()
        wait_until(lambda: cache.counts() == {"ready": 1})
    assert loads.count == 1
    cache.retain([])
    wait_until(lambda: cache.counts() == {})
    assert cache.used_bytes() == 0


def test_equal_bytes_of_two_tenants_are_one_base(
    caches: Caches, store: LocalArtifactStore, workdir: Path, bundles: list[PublishedBundle], loads: Loads
) -> None:
    one, two = (bundle.manifest for bundle in bundles[:2])
    metadata, producer = read_manifest(store, one.base).metadata, PRODUCER.model_copy(update={"kind": "elsewhere"})
    folder = workdir / "bundle-1-11" / "base"
    _, ref = publish_folder(store, "ten_b", folder, metadata=metadata, parents=[], producer=producer)
    assert ref.digest != one.base.digest
    cache = caches.make()
    use(cache, one)
    assert answer(use(cache, two.model_copy(update={"base": ref}))) == expected(bundles[1])
    assert loads.count == 1


@pytest.mark.parametrize("change", [{"harm_vector": None, "harm_scale": 0.0}, {"harm_scale": 0.5}])
def test_another_vector_or_scale_is_another_base(
    caches: Caches, bundles: list[PublishedBundle], loads: Loads, change: dict[str, Any]
) -> None:
    cache, manifest = caches.make(), without_arm(bundles[0].manifest)
    backbone = {"harm_vector_digest": None} if "harm_vector" in change else {"harm_scale": change["harm_scale"]}
    moved = manifest.model_copy(update={**change, "backbone": manifest.backbone.model_copy(update=backbone)})
    use(cache, manifest)
    base = cache.base_bytes
    use(cache, moved)
    assert (loads.count, cache.base_bytes) == (2, 2 * base)


def sizes(caches: Caches, manifest: ProfileManifest) -> tuple[int, int]:
    """Bytes of the base, and of all the rest of a bundle."""
    cache = caches.make()
    use(cache, manifest)
    return cache.base_bytes, cache.used_bytes() - cache.base_bytes
