"""The ``armature`` command: the outermost ring, imported by no service."""
