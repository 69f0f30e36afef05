"""Alembic's environment: runs on the connection that :mod:`armature.db.migrate` hands over, in its transaction."""

from __future__ import annotations

from alembic import context

from armature.db.models import Job

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Job.metadata,
    render_as_batch=True,  # SQLite can not alter a column in place
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
