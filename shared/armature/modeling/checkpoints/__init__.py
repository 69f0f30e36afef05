"""Model folders: strict reading of untrusted files, loading, editing on disk, task vectors."""
