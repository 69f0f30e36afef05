"""Everything that crosses a process boundary, as frozen pydantic models.

The folder is long because it has a module per resource of the API: each is found by the name of its route.
"""
