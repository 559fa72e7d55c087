"""Alembic's entry: the connection comes from the studio."""

from __future__ import annotations

from alembic import context

from huaben.studio.models import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
