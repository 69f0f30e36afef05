"""``python -m armature_decoder``: serve until SIGTERM or SIGINT, then let running answers finish."""

from __future__ import annotations

import gc


def main() -> None:
    """Start the server; :func:`armature_decoder.http.server.serve` says how."""
    gc.disable()  # imports leave no garbage, and looking for it takes a quarter of their time
    from armature_decoder.http.server import serve

    serve()


if __name__ == "__main__":
    main()
