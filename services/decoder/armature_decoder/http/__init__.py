"""HTTP: the ASGI app and its server, OpenAI's routes, and the shapes of responses."""
