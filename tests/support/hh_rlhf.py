"""Real preference pairs from shared/data/hh_rlhf, read from where they lie and never copied into the project."""

from __future__ import annotations

import gzip
import json
from itertools import zip_longest
from pathlib import Path
from typing import Any

ATTRIBUTES = ["harmlessness", "brevity"]
_TURN = "\n\nAssistant:"


def preference_rows(path: Path, count: int, max_chars: int) -> list[dict[str, Any]]:
    """The first ``count`` short dialogues in the platform's preference format.

    People chose the less harmful answer, which labels ``harmlessness``; ``brevity`` goes to the shorter one, null where
    both are as long. The chosen answer comes first in every other row, so that the position says nothing.
    """
    rows: list[dict[str, Any]] = []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            pair = json.loads(line)
            texts = pair["chosen"], pair["rejected"]
            same = next(at for at, (a, b) in enumerate(zip_longest(*texts)) if a != b)
            cut = texts[0].rfind(_TURN, 0, same) + len(_TURN)
            answers = [text[cut:] for text in texts]
            if cut < len(_TURN) or not all(answers) or max(map(len, texts)) > max_chars:
                continue
            better = len(rows) % 2
            answers = answers[::-1] if better else answers
            longer = len(answers[0]) - len(answers[1])
            brevity = None if longer == 0 else int(longer > 0)
            labels = {"harmlessness": better, "brevity": brevity}
            rows.append({"prompt": texts[0][:cut], "responses": answers, "labels": labels})
            if len(rows) == count:
                return rows
    raise ValueError(f"{path.name} has {len(rows)} dialogues of up to {max_chars} characters, not {count}")
