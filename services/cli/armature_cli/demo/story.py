"""``armature demo``: the main job from end to end, through the public REST API."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from armature.client import Client
from armature.contracts.preferences import ATTRIBUTES, Preference
from armature.contracts.specs import JobSpec
from armature_cli.demo import plan
from armature_cli.demo.conversation import Conversation
from armature_cli.demo.narrator import Narrator
from armature_cli.demo.report import Metrics, collect, write_report
from armature_cli.demo.team import PlatformTeam, output
from armature_cli.demo.world import World, is_harmful
from armature_cli.local_platform.embedded import EmbeddedPlatform

PROFILE = "answers"
UNALIGNED_PROFILE = "unaligned"
TENANTS: dict[str, Preference] = {
    "care-line": {"empathy": 3.0, "sensitivity": 1.0},
    "fact-desk": {"helpfulness": 3.0, "truthfulness": 1.0},
}
"""Tenants that share one model with opposite preferences; the attribute with the most weight is first."""
WORKPLACE = {"ARMATURE_WORKER__CONCURRENCY": "2"}
"""Settings of the platform for the story: independent jobs run side by side."""
CHAPTERS = 8
_ATTACKS_TRIED = 20


def tell(platform: EmbeddedPlatform, seed: int) -> None:
    """Run the story on a running platform and print how to continue.

    Raises:
        JobFailed, APIError, ModelNotServed, httpx.HTTPError: A step failed.
    """
    narrator = Narrator(CHAPTERS)
    with Client(platform.api_url, platform.admin_key) as client:
        story = Story(platform, client, seed, narrator)
        story.tell()
    narrator.say_goodbye(platform.options.data, story.folder, next(iter(TENANTS)), PROFILE)


class Story:
    """One run of the demo on a running platform; the results of earlier runs stay.

    Args:
        platform: A started platform.
        client: A client with the platform's first key.
        seed: Seed of the world, the base model and every job.
        narrator: Prints the story.
    """

    def __init__(self, platform: EmbeddedPlatform, client: Client, seed: int, narrator: Narrator) -> None:
        self._platform, self._seed, self._narrator = platform, seed, narrator
        self._world = World(seed)
        self._team = PlatformTeam(platform, client, narrator)
        self.folder = platform.data / "demo"
        self.folder.mkdir(exist_ok=True)

    def tell(self) -> None:
        """Run every chapter; leaves ``report.json`` and ``keys.json`` in the folder.

        Raises:
            JobFailed, APIError, ModelNotServed, httpx.HTTPError: A step failed.
        """
        files = self._raise_base_model()
        base_model, data = self._bring_in(files)
        harm_vector, permuted = self._build_vectors(base_model, data)
        guided, metrics = self._train_arm(base_model, harm_vector, permuted, data)
        report = self._judge(guided, data, metrics)
        keys = self._go_live(guided)
        self._conclude(report | {"answers": self._talk(keys)})

    def _raise_base_model(self) -> list[Path]:
        why = (
            "A tiny Llama learns the demo's world from scratch: everyday troubles with kind, careful or useful answers "
            "and a nonsense harm (people who want to 'zorble' a neighbour's gate) that it mostly helps with."
        )
        label = "pretraining"
        with self._narrator.chapter("pretraining", "Raise a base model", why), self._narrator.bars([label]) as bars:
            from armature_cli.demo import tiny_model  # imports torch, which takes seconds

            return tiny_model.raise_model(
                self._world,
                plan.PRETRAINING_DIALOGUES,
                self.folder / "model",
                lambda step, total, loss: bars[label].show(f"loss {loss:.2f}", step, total),
            )

    def _bring_in(self, files: Sequence[Path]) -> tuple[str, plan.Datasets]:
        why = (
            "A base model is uploaded file by file, checked (safetensors only, no code) and named by its hash. Data "
            "sets are checked row by row before any worker sees them."
        )
        with self._narrator.chapter("import", "Bring in model and data", why):
            base_model = self._team.import_model(f"tiny-{self._seed}-{time.strftime('%y%m%d-%H%M%S')}", files)
            return base_model, self._team.upload_datasets(self._world)

    def _build_vectors(self, base_model: str, data: plan.Datasets) -> tuple[str, str]:
        why = (
            "Fine-tune a copy on harmful answers and keep the largest tenth of what changed: that is the harm vector. "
            "Subtracting it makes the base safe. As a control, the same numbers are shuffled among their places."
        )
        with self._narrator.chapter("harm_vector", "Find harm in the weights and take it out", why):
            jobs = self._team.run(
                {
                    "harm vector": plan.harm_vector_spec(base_model, data, self._seed),
                    "shuffled control": plan.harm_vector_spec(base_model, data, self._seed, "permuted"),
                }
            )
        return output(jobs["harm vector"], "harm_vector"), output(jobs["shuffled control"], "harm_vector")

    def _train_arm(
        self, base_model: str, harm_vector: str, permuted: str, data: plan.Datasets
    ) -> tuple[plan.Subject, dict[str, Metrics]]:
        why = (
            "One small adapter, an autoregressive reward model (ARM), learns from labelled pairs what five attributes "
            "mean, for every mix of them at once. It guides the safe model token by token; no weight of that changes. "
            "Meanwhile a second worker process measures the models that are there, and how wide the safe set may be: "
            "guidance chooses only among tokens that the safe model itself finds plausible."
        )
        subjects = {
            "base": plan.Subject(base_model),
            "safe": plan.Subject(base_model, harm_vector),
            "permuted": plan.Subject(base_model, permuted),
        }
        specs: dict[str, JobSpec] = {"train the ARM": plan.arm_spec(base_model, harm_vector, data, self._seed)}
        for name, subject in subjects.items():
            specs[f"evaluate {name}"] = plan.evaluation_spec(subject, data, self._seed, control=name == "base")
        with self._narrator.chapter("arm", "Train one reward model for all preferences", why):
            jobs = self._team.run(specs)
            metrics: dict[str, Metrics] = {name: self._team.figures(jobs[f"evaluate {name}"]) for name in subjects}
        delta = min(metrics["safe"]["safe_set_delta"], plan.WIDEST_SAFE_SET)
        return plan.Subject(base_model, harm_vector, output(jobs["train the ARM"], "arm"), delta), metrics

    def _judge(self, guided: plan.Subject, data: plan.Datasets, metrics: Mapping[str, Metrics]) -> dict[str, Any]:
        why = (
            "The guided model answers what base, safe model and control have answered: held-out prompts, at many "
            "preferences. A deterministic scorer knows every sentence of this world: nothing here is a matter of taste."
        )
        label = "evaluate safe + guidance"
        with self._narrator.chapter("evaluation", "Measure what guidance does", why):
            jobs = self._team.run({label: plan.evaluation_spec(guided, data, self._seed)})
            return collect(**metrics, guided=self._team.figures(jobs[label])) | {
                "safe_set_delta": guided.safe_set_delta
            }

    def _go_live(self, guided: plan.Subject) -> dict[str, str]:
        why = (
            "A profile version freezes base, vector, adapter and guidance by hash; going live is moving an alias. The "
            "decoder loads what it names. Two tenants share the weights, each with a default preference of its own."
        )
        with self._narrator.chapter("go_live", "Two tenants go live", why):
            keys = {name: self._team.issue_key(name) for name in TENANTS}
            _write_private(self.folder / "keys.json", keys)
            with self._narrator.bars(TENANTS) as bars:
                for name, preference in TENANTS.items():
                    self._team.put_live(keys[name], PROFILE, plan.aligned_version(guided, preference))
                    self._team.put_live(keys[name], UNALIGNED_PROFILE, plan.unaligned_version(guided.base_model))
                    bars[name].finish(f"leans to {_favourite(name)}")
        return keys

    def _talk(self, keys: Mapping[str, str]) -> dict[str, Any]:
        why = (
            "Over the decoder's OpenAI route, streamed. A preference travels with each request; nothing is reloaded. "
            "Sentences that score for the attribute asked for stand between stars."
        )
        with self._narrator.chapter("conversation", "Talk to it", why):
            prompt = self._world.held_out_benign_prompts(1)[0]
            key = next(iter(keys.values()))
            five = {name: self._ask(key, PROFILE, prompt, preference={name: 1.0}) for name in ATTRIBUTES}
            tenants = {name: self._ask(key, PROFILE, prompt) for name, key in keys.items()}
            attack, replies = self._attack(key)
        show = self._narrator.show_answers
        show("The same prompt answered five ways", prompt, {name: (text, name) for name, text in five.items()})
        show("Two tenants, two defaults", prompt, {name: (text, _favourite(name)) for name, text in tenants.items()})
        show("A harmful prompt", attack, {name: (text, None) for name, text in replies.items()})
        return {"prompt": prompt, "by_preference": five, "by_tenant": tenants, "attack": {"prompt": attack, **replies}}

    def _conclude(self, report: dict[str, Any]) -> None:
        with self._narrator.chapter("report", "What it shows", "Every figure comes from the evaluation jobs' reports."):
            self._narrator.show_attacks(report)
            self._narrator.show_control(report)
            self._narrator.show_claims(report)
        timings = self._narrator.timings
        total = round(sum(timings.values()), 2)
        write_report(report | {"seed": self._seed, "timings": {**timings, "total": total}}, self.folder / "report.json")

    def _ask(self, key: str, model: str, prompt: str, **guidance: Any) -> str:
        sampling = {"seed": self._seed, "temperature": plan.TEMPERATURE, "max_tokens": plan.MAX_TOKENS}
        with Conversation(self._platform.decoder_url, key) as conversation:
            return conversation.ask(model, prompt, **sampling, **guidance)

    def _attack(self, key: str) -> tuple[str, dict[str, str]]:
        """Find the first held-out harmful prompt that the base follows; return it with each model's answer."""
        for attack in self._world.held_out_harmful_prompts(_ATTACKS_TRIED):
            answer = self._ask(key, UNALIGNED_PROFILE, attack)
            if is_harmful(answer):
                break
        safe = self._ask(key, PROFILE, attack, guidance_weight=0.0)
        guided = self._ask(key, PROFILE, attack)
        return attack, {"base": answer, "safe": safe, "safe and guided": guided}


def _favourite(tenant: str) -> str:
    return next(iter(TENANTS[tenant]))


def _write_private(path: Path, value: Mapping[str, str]) -> None:
    """Write JSON readable by the file's owner only."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(value, file, indent=2)
