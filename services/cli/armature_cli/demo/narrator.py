"""Output of the demo: chapters with a reason, progress bars, tables; on a terminal and in a log file."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from armature.algorithms.lexicon import LexiconScorer
from armature_cli.demo import world
from armature_cli.demo.report import CLAIMS

LOG_WIDTH = 110
NEXT_STEPS = """
To continue, run `armature up --data {data}` and, with `pip install openai`:

    import json, openai
    key = json.load(open("{keys}"))["{tenant}"]
    client = openai.OpenAI(base_url="http://127.0.0.1:8100/v1", api_key=key)
    answer = client.chat.completions.create(
        model="{model}", temperature=0.7,
        messages=[{{"role": "user", "content": "hello my dog is ill . what should i do ?"}}],
        extra_body={{"preference": {{"empathy": 0.8, "helpfulness": 0.2}}}})
    print(answer.choices[0].message.content)
"""


class Bar:
    """A progress bar."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def show(self, note: str, step: int, total: int) -> None:
        """Show ``step`` of ``total`` steps and a note."""
        self._progress.update(self._task, completed=step, total=max(total, 1), note=note)

    def finish(self, note: str) -> None:
        """Fill the bar."""
        self._progress.update(self._task, completed=1, total=1, note=note)


class Narrator:
    """The console of the story; records the time of each chapter."""

    def __init__(self, chapters: int) -> None:
        self.console = Console(highlight=False)
        if not self.console.is_terminal:
            self.console.width = LOG_WIDTH
        self.timings: dict[str, float] = {}
        self._chapters = chapters
        self._scorer = LexiconScorer(world.lexicon())

    @contextmanager
    def chapter(self, key: str, title: str, why: str) -> Iterator[None]:
        """Print a chapter's heading and reason, and time the chapter under ``key``."""
        self.console.print(f"\n[bold]{len(self.timings) + 1}/{self._chapters}  {title}[/bold]")
        self.console.print(why, style="dim")
        start = time.monotonic()
        yield
        self.timings[key] = round(time.monotonic() - start, 2)

    @contextmanager
    def bars(self, labels: Iterable[str]) -> Iterator[dict[str, Bar]]:
        """Show a progress bar per label; in a log file each is one line, written at the end."""
        columns = (
            TextColumn("   {task.description:42}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console) as progress:
            yield {label: Bar(progress, progress.add_task(label, total=None, note="")) for label in labels}

    def show_answers(self, title: str, prompt: str, answers: Mapping[str, tuple[str, str | None]]) -> None:
        """Print answers to one prompt: row name -> (text, attribute whose sentences are highlighted)."""
        table = Table(title=f"{title}\n[italic]{prompt}[/italic]", show_lines=True, title_justify="left")
        table.add_column("")
        table.add_column("answer", overflow="fold")
        for name, (text, attribute) in answers.items():
            table.add_row(name, self._mark(text, attribute))
        self.console.print()
        self.console.print(table)

    def show_attacks(self, report: Mapping[str, Any]) -> None:
        """Print attack success before and after subtraction and guidance."""
        table = Table(title="Attack success rate (share of held-out harmful prompts that get instructions)")
        table.add_column("model")
        table.add_column("attacks that succeed", justify="right")
        table.add_column("", min_width=30)
        rows = {
            "base": report["asr"]["base"],
            "base minus shuffled vector (control)": report["permuted_control_asr"],
            "base minus harm vector = safe": report["asr"]["safe"],
            "safe + guidance, worst preference": report["asr"]["guided"],
        }
        for name, rate in rows.items():
            table.add_row(name, f"{rate:.0%}", Text("█" * round(30 * rate), style="red"))
        self.console.print()
        self.console.print(table)

    def show_control(self, report: Mapping[str, Any]) -> None:
        """Print the control matrix: the effect of asking for one attribute on all of them."""
        attributes, matrix = report["attributes"], report["control_matrix"]
        table = Table(title="Control matrix: change of each score when one attribute is asked for alone")
        table.add_column("asked for")
        for name in attributes:
            table.add_column(name, justify="right")
        for i, (name, row) in enumerate(zip(attributes, matrix, strict=True)):
            table.add_row(name, *(f"[bold green]{v:+.2f}[/]" if i == j else f"{v:+.2f}" for j, v in enumerate(row)))
        self.console.print()
        self.console.print(table)

    def show_claims(self, report: Mapping[str, Any]) -> None:
        """Print the run's figures against the claims."""
        table = Table(title="What this run shows")
        table.add_column("claim", overflow="fold")
        table.add_column("measured", justify="right")
        table.add_column("claimed", justify="right")
        table.add_column("")
        for claim in CLAIMS:
            sign = "<=" if claim.at_most else ">="
            verdict = "[green]yes[/]" if claim.holds(report) else "[red]NO[/]"
            table.add_row(claim.text, f"{claim.measured(report):.3g}", f"{sign} {claim.bound(report):.3g}", verdict)
        self.console.print()
        self.console.print(table)

    def say_goodbye(self, data: Path, folder: Path, tenant: str, model: str) -> None:
        """Print where the figures are and how to continue."""
        minutes, seconds = divmod(round(sum(self.timings.values())), 60)
        self.console.print(f"\nDone in {minutes} min {seconds:02} s. Figures: {folder / 'report.json'}", soft_wrap=True)
        snippet = NEXT_STEPS.format(data=shlex.quote(str(data)), keys=folder / "keys.json", tenant=tenant, model=model)
        self.console.print(snippet, soft_wrap=True, markup=False)

    def _mark(self, text: str, attribute: str | None) -> Text:
        """Capitalise and punctuate an answer; highlight sentences of the attribute and harmful ones."""
        marked = Text()
        for sentence in filter(None, (part.strip() for part in text.split("."))):
            score = self._scorer.score(sentence, ended=True)
            written = f"{sentence[0].upper()}{sentence[1:]}."
            if score.harmful:
                marked.append(f"!{written}! ", style="bold red")
            elif attribute and score.attributes[attribute]:
                marked.append(f"*{written}* ", style="bold green")
            else:
                marked.append(f"{written} ")
        return marked
