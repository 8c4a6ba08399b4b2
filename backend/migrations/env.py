"""Alembic runs this around the migrations; `backend.database.migrate` hands it an open transaction."""

from alembic import context

from backend.database import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,  # SQLite alters by copying
)
with context.begin_transaction():
    context.run_migrations()
