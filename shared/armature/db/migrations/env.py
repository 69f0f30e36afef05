"""Alembic's environment: runs on the connection and in the transaction of :mod:`armature.db.migrate`."""

from __future__ import annotations

from alembic import context

from armature.db.models import Job

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Job.metadata,
    render_as_batch=True,  # SQLite can not ALTER a column in place
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
