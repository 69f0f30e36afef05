"""Everything that crosses a process boundary, as frozen pydantic models.

A module per resource of the API, found by the name of its route; that is why the folder holds more than a dozen.
"""
