"""Jobs, the pictures they made, and what the pictures were made from."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("parent", sa.Integer),
        sa.Column("worker", sa.Text),
        sa.Column("lease", sa.DateTime(timezone=True)),
        sa.Column("stop", sa.Boolean, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("fruitless", sa.Integer, nullable=False),
        sa.Column("crashes", sa.Integer, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started", sa.DateTime(timezone=True)),
        sa.Column("finished", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.ForeignKeyConstraint(["parent"], ["jobs.id"], name="fk_jobs_parent", ondelete="SET NULL"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_jobs_state_queue_priority_id", "jobs", ["state", "queue", "priority", "id"])
    op.create_index("ix_jobs_owner_id", "jobs", ["owner", "id"])

    op.create_table(
        "job_inputs",
        sa.Column("job", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("job", "name", name="pk_job_inputs"),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name="fk_job_inputs_job", ondelete="CASCADE"),
    )
    op.create_index("ix_job_inputs_sha256", "job_inputs", ["sha256"])

    op.create_table(
        "pictures",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("job", sa.Integer, nullable=False),
        sa.Column("index", sa.Integer, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("bytes", sa.Integer, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("infotext", sa.Text, nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("parent", sa.Integer),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_pictures"),
        sa.UniqueConstraint("job", "index", name="uq_pictures_job_index"),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name="fk_pictures_job", ondelete="RESTRICT"),
        sa.ForeignKeyConstraint(["parent"], ["pictures.id"], name="fk_pictures_parent", ondelete="SET NULL"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_pictures_owner_id", "pictures", ["owner", "id"])
    op.create_index("ix_pictures_sha256", "pictures", ["sha256"])

    op.create_table(
        "picture_sources",
        sa.Column("picture", sa.Integer, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("picture", "role", "name", name="pk_picture_sources"),
        sa.ForeignKeyConstraint(["picture"], ["pictures.id"], name="fk_picture_sources_picture", ondelete="CASCADE"),
    )
    op.create_index("ix_picture_sources_sha256", "picture_sources", ["sha256"])
