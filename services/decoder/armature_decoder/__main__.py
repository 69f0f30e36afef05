"""``python -m armature_decoder``: serve until SIGTERM or SIGINT, then let running answers finish."""

from __future__ import annotations

from armature.startup import startup_without_gc


def main() -> None:
    """Start the server; return when a signal has ended it."""
    with startup_without_gc():
        from armature_decoder.http.server import serve

    serve()


if __name__ == "__main__":
    main()
