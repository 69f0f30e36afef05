"""A process that reads a parquet file on standard input and writes its rows as JSON lines.

Its argument is the bytes of data that it may hold. The last line is ``{END: ""}``, or has the error that ended it. It
imports nothing of this project, so that it starts fast and has nothing to give away. Bytes are read as UTF-8, times and
the like as text.
"""

from __future__ import annotations

import json
import resource
import sys
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

END = "end of the parquet file"
MAX_SECONDS = 3600
_ROWS = 64
"""Rows decoded at a time: few, since each may repeat a long text that the file holds once."""


def _plain_type(kind: Any) -> Any:
    """Replace times and the like inside a type by text, which JSON has."""
    import pyarrow as pa
    from pyarrow import types

    if types.is_temporal(kind):
        return pa.string()
    if types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if types.is_struct(kind):
        return pa.struct([field.with_type(_plain_type(field.type)) for field in kind])
    if types.is_large_list(kind):
        return pa.large_list(_plain_type(kind.value_type))
    if types.is_list(kind) or types.is_fixed_size_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    return kind


def _values(column: Any) -> list[Any]:
    """Return a column's values; a type that has no form in JSON gives nulls, as if the column were absent."""
    import pyarrow as pa

    try:
        kind = _plain_type(column.type)
        return list((column if kind == column.type else column.cast(kind)).to_pylist(maps_as_pydicts="lossy"))
    except (pa.ArrowException, ValueError, KeyError, TypeError, NotImplementedError):
        return [None] * len(column)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return float(value) if isinstance(value, Decimal) else str(value)


def main() -> None:
    """Write the rows."""
    max_memory = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_DATA, (max_memory, max_memory))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # where memory runs out for all, this process is the one to end
        Path("/proc/self/oom_score_adj").write_text("1000")
    error = ""
    try:
        import pyarrow.parquet as parquet

        file = parquet.ParquetFile(sys.stdin.buffer, buffer_size=1 << 20, pre_buffer=False)
        names = file.schema_arrow.names
        for batch in file.iter_batches(_ROWS, use_threads=False):
            for row in zip(*(_values(column) for column in batch.columns), strict=True):
                sys.stdout.write(json.dumps(dict(zip(names, row, strict=True)), default=_plain) + "\n")
    except ImportError:
        error = "pyarrow is not installed (the extra `control` has it)"
    except MemoryError:
        error = "it needs too much memory; write it with smaller row groups and pages"
    except Exception as caught:  # every class of error that a damaged file may raise in pyarrow
        error = str(caught).split("\n")[0][:200] or type(caught).__name__
    sys.stdout.write(json.dumps({END: error}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
