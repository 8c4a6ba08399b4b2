"""Control maps that are kept with the pictures of a job."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("pictures", sa.Column("role", sa.Text, nullable=False, server_default="picture"))
