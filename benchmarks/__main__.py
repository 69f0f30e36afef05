"""``python -m benchmarks COMMAND``: run a benchmark."""

from benchmarks.commands import app

app(prog_name="python -m benchmarks")
