"""``python -m armature_decoder``: serve until SIGTERM or SIGINT, then let running answers finish."""

from __future__ import annotations

import gc


def main() -> None:
    """Start the server; return when a signal has ended it."""
    gc.disable()  # imports leave no garbage, and looking for it takes a quarter of their time
    from armature_decoder.http.server import serve

    serve()


if __name__ == "__main__":
    main()
