"""Files as they come: containers, encodings, line ends, what can not be read, and what must not take the memory."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import zipfile
import zlib
from collections import Counter
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.contracts.datasets import PreferenceRow, PromptCompletionRow, PromptRow
from armature.contracts.file_scans import FileScan, LineProblem
from armature.datasets.files import parquet as parquet_module
from armature.datasets.files import text
from armature.datasets.files.json_files import json_list
from armature.datasets.files.records import Record
from armature.datasets.row_reader import RowReader, read_rows
from armature.datasets.scan import scan_rows
from armature.errors import InvalidDataset

ROWS = [
    {"prompt": "Is it?", "completion": "yes"},
    {"prompt": 'A "quoted" one,\nover two lines', "completion": "Así es; 是\ttab"},
]


def scan(content: bytes) -> FileScan:
    return scan_rows(io.BytesIO(content))


def completions(content: bytes) -> list[dict[str, Any]]:
    return [row.model_dump(mode="json") for row in read_rows(io.BytesIO(content), PromptCompletionRow)]


def table(delimiter: str, end: str = "\n") -> str:
    target = io.StringIO()
    writer = csv.DictWriter(target, ["prompt", "completion"], delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(ROWS)
    return target.getvalue()


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    target = io.BytesIO()
    pq.write_table(pa.table(columns), target, **options)
    return target.getvalue()


LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
FILES = {
    "json lines": ("json_lines", LINES.encode()),
    "byte-order mark": ("json_lines", LINES.encode("utf-8-sig")),
    "CR": ("json_lines", LINES.replace("\n", "\r").encode()),
    "CRLF": ("json_lines", LINES.replace("\n", "\r\n").encode()),
    "UTF-16": ("json_lines", LINES.encode("utf-16")),
    "UTF-16 without a mark": ("json_lines", LINES.encode("utf-16-le")),
    "UTF-16 big": ("json_lines", LINES.encode("utf-16-be")),
    "UTF-32": ("json_lines", LINES.encode("utf-32")),
    "list": ("json_list", json.dumps(ROWS).encode()),
    "indented list": ("json_list", json.dumps(ROWS, indent=2, ensure_ascii=False).encode("utf-8-sig")),
    "list in an object": ("json_object", json.dumps({"version": 2, "data": ROWS}, indent=1).encode()),
    "csv": ("csv", table(",").encode()),
    "csv of Excel": ("csv", table(",", "\r\n").encode("utf-8-sig")),
    "csv with semicolons": ("csv", table(";").encode()),
    "csv in UTF-16": ("csv", table("\t").encode("utf-16")),
    "tsv": ("csv", table("\t").encode()),
    "parquet": ("parquet", parquet({name: [row[name] for row in ROWS] for name in ROWS[0]})),
    "gzip": ("json_lines", gzip.compress(LINES.encode())),
    "gzip in two members": ("json_lines", b"".join(map(gzip.compress, LINES.encode().splitlines(True)))),
    "gzip of csv": ("csv", gzip.compress(table(",").encode("utf-16"))),
    "gzip of parquet": (
        "parquet",
        gzip.compress(parquet({name: [row[name] for row in ROWS] for name in ROWS[0]}, compression="none")),
    ),
}


@pytest.mark.process
@pytest.mark.parametrize("name", FILES)
def test_every_container_and_encoding_gives_the_same_rows(name: str) -> None:
    container, content = FILES[name]
    assert completions(content) == ROWS
    found = scan(content)
    assert (found.container, found.format, found.statistics.rows) == (container, "prompt_completion", 2)
    assert found.validation.errors == []


def test_texts_of_a_list_are_prompts() -> None:
    for content in (b'["Is it?", "Why?"]', b'{\n"topics": {"one": ["Is it?"], "two": ["Why?"]}\n}'):
        assert [row.prompt for row in read_rows(io.BytesIO(content), PromptRow)] == ["Is it?", "Why?"]


def zipped(*names: str) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return target.getvalue()


UNREADABLE = {
    "zstd": (b"\x28\xb5\x2f\xfd rest", "a zstd archive; unpack it"),
    "zip": (zipped("rows.jsonl"), "a zip archive; unpack it"),
    "xlsx": (zipped("[Content_Types].xml", "xl/workbook.xml"), r"an Excel workbook \(xlsx\); export the rows"),
    "xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(8), "an old Excel or Word file; export"),
    "pdf": (b"%PDF-1.7\n", "a PDF; export"),
    "safetensors": ((64).to_bytes(8, "little") + b'{"__metadata__":{}}', "safetensors file; .* purpose `model`"),
    "pickle": (b"\x80\x04\x95", "a pickle; export"),
    "arrow": (b"ARROW1\x00\x00", "an arrow file; write it as parquet"),
    "html": (b"<!DOCTYPE html>", "a web page; download the file itself"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer; .*git lfs pull"),
    "packed": (gzip.compress(b"%PDF-1.7\n"), "a PDF; export"),
}


@pytest.mark.bad_input(41)
@pytest.mark.parametrize("name", UNREADABLE)
def test_what_can_not_be_read_is_named_with_the_remedy(name: str) -> None:
    content, message = UNREADABLE[name]
    found = scan(content).validation
    assert ([error.code for error in found.errors], found.skippable) == (["unreadable_file"], False)
    with pytest.raises(InvalidDataset, match=message):
        list(read_rows(io.BytesIO(content), PromptRow, on_bad_rows="skip"))


def test_rows_of_a_table_have_the_line_they_begin_on() -> None:
    content = b'prompt,completion\na,"two\nlines"\n,"no prompt"\nb,c,d\nb,c\n'
    seen = list(RowReader(io.BytesIO(content)).read())
    assert [(one.line, one.code) for one in seen if isinstance(one, LineProblem)] == [
        (4, "missing_field"),
        (5, "malformed_table"),
    ]


def test_a_table_of_another_encoding_is_refused_where_it_counts() -> None:
    content = "prompt,note\nAsí,x\nb,Así\n".encode("latin-1")
    (problem,) = scan(content).validation.errors
    assert (problem.line, problem.field) == (2, "prompt")
    assert problem.message == "the text is not valid UTF-8; save the file as UTF-8"


def test_cells_are_read_as_the_column_needs_them() -> None:
    content = b'prompt,completion,label\na,b,1\na,c,False\n007,"[1]",true\n'
    found = scan(content)
    assert (found.format, found.statistics.pairs, found.validation.errors) == ("unpaired_preference", 1, [])
    dialogue = json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    target = io.StringIO()
    csv.writer(target).writerows([["messages"], [dialogue]])
    assert completions(target.getvalue().encode())[0]["completion"] == "b"


def test_an_unclosed_quotation_mark_ends_a_table() -> None:
    found = scan(b'prompt\na\n"never closed\n' + b"x" * text.MAX_ROW_CHARACTERS)
    assert [(one.line, one.code) for one in found.validation.errors] == [(3, "malformed_table")]
    assert (found.statistics.rows, found.validation.skippable) == (1, False)


def test_a_list_cut_short_or_with_more_behind_it_is_refused() -> None:
    whole = json.dumps(ROWS).encode()
    for content, row in ((whole[:-1], 2), (whole[:-30], 2), (whole + b"[]", 2)):
        found = scan(content).validation
        assert (found.errors[-1].code, found.errors[-1].unit, found.skippable) == ("malformed_json", "row", False)
        assert (found.errors[-1].line or 0) >= row


ELEMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text('ab"\\[]{},\n é', max_size=6),
    lambda child: st.lists(child, max_size=3) | st.dictionaries(st.text('a"]', max_size=2), child, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.text(max_size=3), ELEMENTS, max_size=3), max_size=6), st.sampled_from([None, 1]))
@settings(max_examples=80)
def test_a_list_is_split_where_json_splits_it(rows: list[dict[str, Any]], indent: int | None) -> None:
    found = list(json_list(io.StringIO(json.dumps(rows, indent=indent))))
    assert [record.columns for record in found if isinstance(record, Record)] == rows


def test_only_columns_that_count_are_judged() -> None:
    odd = '"id": 123456789012345678901234567890, "n": NaN, "s": "\\ud800", "z": "\\u0000", "x": 1, "x": 2, "deep": '
    deep = "[" * 70 + "]" * 70
    good = "{" + odd + deep + ', "prompt": "a", "completion": "b", "label": null}'
    found = scan(good.encode() + b"\n")
    assert (found.format, found.validation.errors, found.statistics.rows) == ("prompt_completion", [], 1)
    for column in ('"completion": NaN', '"completion": "\\ud800"', '"completion": "b", "completion": "c"'):
        (error,) = scan(f'{{"prompt": "a", {column}}}'.encode()).validation.errors
        assert error.code in ("non_finite_number", "invalid_value", "duplicate_key")


@pytest.mark.process
def test_parquet_columns_of_any_type_are_ignored_unless_they_count() -> None:
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    columns = {
        "prompt": pa.array(["Is it?", "Is it?"], pa.large_string()),
        "chosen": [[{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "yes", "at": now}]] * 2,
        "rejected": [[{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "no"}]] * 2,
        "system": pa.array([None, b"Be brief."]),
        "score_chosen": [float("nan"), 1.0],
        "at": [now, None],
        "nanoseconds": pa.array([1, 2], pa.timestamp("ns")),
        "price": [Decimal("1.5"), None],
        "image": [b"\xff\xd8", None],
        "kind": pa.array(["a", "b"]).dictionary_encode(),
        "counts": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
    }
    found = list(read_rows(io.BytesIO(parquet(columns)), PreferenceRow))
    assert [row.responses for row in found] == [["yes", "no"]] * 2
    assert [[message.role for message in row.prompt] for row in found] == [["user"], ["system", "user"]]  # type: ignore[union-attr]
    labels = {"prompt": ["a"], "response_0": ["b"], "response_1": ["c"]}
    floats = {**labels, "better_response_id": [1.0], "safer_response_id": [0.0]}  # pandas writes them so beside nulls
    (row,) = read_rows(io.BytesIO(parquet(floats)), PreferenceRow)
    assert row.labels == {"helpfulness": 1, "harmlessness": 0}


@pytest.mark.bad_input(45)
@pytest.mark.process
def test_a_damaged_parquet_file_is_refused_and_nothing_else_ends() -> None:
    whole = parquet({"prompt": [f"question {number}" for number in range(500)]}, compression="none")
    footer = int.from_bytes(whole[-8:-4], "little")
    damaged = [
        b"PAR1",
        whole[: len(whole) // 2],
        whole[:-8] + (2**31 - 1).to_bytes(4, "little") + b"PAR1",
        whole[: -8 - footer] + b"\xff" * footer + whole[-8:],
        whole[: -8 - footer] + b"\x1c" * footer + whole[-8:],
    ]
    for content in damaged:
        found = scan(content)
        assert [(one.code, one.line) for one in found.validation.errors] == [("unreadable_file", None)]
        assert found.statistics.rows == 0


@pytest.mark.bad_input(45)
@pytest.mark.process
def test_files_that_unpack_to_far_more_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "FREE_EXPANSION", 100_000)
    monkeypatch.setattr(text, "MAX_EXPANSION", 10)
    repeated = pa.array(["x" * 100_000]).dictionary_encode().take(pa.array([0] * 200))
    bombs = {"gzip": gzip.compress(b'{"prompt": "a"}\n' * 100_000), "parquet": parquet({"prompt": repeated})}
    for name, content in bombs.items():
        assert len(content) < 20_000, name
        found = scan(content).validation
        assert (found.errors[-1].code, found.skippable) == ("too_large_unpacked", False), name
        assert len(found.errors) == 1


@pytest.mark.bad_input(45)
@pytest.mark.process
def test_a_page_that_takes_all_memory_ends_its_own_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_module, "MAX_MEMORY", 256 * 2**20)
    content = parquet({"prompt": pa.array(["x" * 200 * 2**20], pa.large_string())}, compression="zstd")
    (problem,) = scan(content).validation.errors
    assert (problem.code, len(content) < 50_000) == ("unreadable_file", True)
    assert "memory" in problem.message
    assert scan(parquet({"prompt": ["Is it?"]})).validation.errors == []


def test_a_gzip_file_that_is_cut_or_damaged_is_refused() -> None:
    whole = gzip.compress("".join(json.dumps({"prompt": f"{n}"}) + "\n" for n in range(9999)).encode())
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 0xFF
    for content in (whole[:-9], bytes(broken), b"\x1f\x8b" + zlib.compress(b"x")):
        found = scan(content).validation
        assert found.errors[-1].code in ("unreadable_file", "malformed_json")
        assert not found.skippable or found.error_count


def test_unpacked_bytes_have_the_limit_of_the_file() -> None:
    content = gzip.compress(b'{"prompt": "a"}\n' * 1000)
    (problem,) = scan_rows(io.BytesIO(content), max_bytes=4000).validation.errors
    assert problem.code == "too_large_unpacked"
    assert scan_rows(io.BytesIO(content), max_bytes=16_000).statistics.rows == 1000


def test_bad_rows_are_skipped_on_request() -> None:
    content = b'{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n{,}\n{"prompt": "c", "completion": "d"}\n'
    with pytest.raises(InvalidDataset, match="line 2: completion"):
        list(read_rows(io.BytesIO(content), PromptCompletionRow))
    skipped: Counter[str] = Counter()
    kept = list(read_rows(io.BytesIO(content), PromptCompletionRow, on_bad_rows="skip", skipped=skipped))
    assert [row.completion for row in kept] == ["b", "d"]
    assert skipped == {"missing_field": 1, "malformed_json": 1}
    found = scan(content).validation
    assert (found.error_count, found.skippable) == (2, True)
