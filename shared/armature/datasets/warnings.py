"""Warnings about a file of rows: what is allowed, left out or not used, and probably not intended."""

from __future__ import annotations

import re
from collections.abc import Iterator

from armature.contracts.datasets import DatasetFormat
from armature.contracts.file_scans import DatasetStatistics, RowWarning
from armature.datasets.forms.notes import NOTES
from armature.datasets.row_reader import RowReader

_JUDGEMENT = re.compile(
    r"(^|[_\-. ])(labels?|scores?|ratings?|ranks?|ranking|rewards?|preference|preferred|better|worse|safer|safe|unsafe"
    r"|winner|votes?|chosen|rejected|judge\w*|helpfulness|harmless\w*|harmful\w*|truthful\w*|toxicity|quality)"
    r"($|[_\-. \d])",
    re.IGNORECASE,
)
_SHOWN_COLUMNS = 8
_JUDGED_FORMS: dict[DatasetFormat, str] = {
    "prompt": '{"prompt", "completion", "label"} or {"prompt", "completion", "scores"}',
    "prompt_completion": '{"prompt", "completion", "label"} or {"prompt", "completion", "scores"}',
    "messages": '{"prompt", "completion", "label"} or {"prompt", "completion", "scores"}',
    "preference": '{"prompt", "responses", "scores"}',
    "unpaired_preference": '{"prompt", "completion", "scores"}',
}
"""The form that takes a judgement, by the format that a file has without it."""


def warnings_of(reader: RowReader, statistics: DatasetStatistics) -> list[RowWarning]:
    """List the warnings about a file that was read to its end."""
    identical_rows = round(statistics.identical_row_share * statistics.rows)
    found = [
        ("identical_answers", statistics.identical_answers, "pairs have two equal answers, which train nothing"),
        ("identical_rows", identical_rows, "rows repeat an earlier row"),
        ("unpaired_answers", statistics.unpaired_answers, "rated answers have no partner with the same prompt"),
        *((code, reader.notes[code], message) for code, message in NOTES.items()),
        *_unused_judgements(reader),
    ]
    return [RowWarning(code=code, message=message, count=count) for code, count, message in found if count]


def _unused_judgements(reader: RowReader) -> Iterator[tuple[str, int, str]]:
    columns = sorted(name for name in reader.unused if _JUDGEMENT.search(name))
    wanted = reader.shape and _JUDGED_FORMS.get(reader.shape.form.format)
    if columns and wanted:
        named = ", ".join(repr(name)[1:-1][:64] for name in columns[:_SHOWN_COLUMNS])
        message = f"rows have columns that look like judgements and are not used ({named}); to use them write {wanted}"
        yield "unused_judgements", max(reader.unused[name] for name in columns), message
