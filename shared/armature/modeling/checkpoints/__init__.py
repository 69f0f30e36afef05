"""Model folders and their files: strict reading of untrusted ones, loading, editing on disk, task vectors."""
