"""Tenants, and marks beside the goals. What was there before belongs to the main tenant.

Law: as before, a migration adds; a fleet of the older Nexus is refused from here on.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# A constant default is kept in the catalogue: no row is written anew, however many there are.
_STATEMENTS = (
    "ALTER TABLE nexus.goals ADD COLUMN tenant text COLLATE \"C\" NOT NULL DEFAULT 'main'",
    "DROP INDEX nexus.goals_idempotency",
    "CREATE UNIQUE INDEX goals_idempotency ON nexus.goals(tenant, principal, idempotency_key)"
    " WHERE idempotency_key <> ''",
    "CREATE INDEX goals_tenant ON nexus.goals(tenant, id) WHERE tenant <> 'main'",
    "ALTER TABLE nexus.head ADD COLUMN marks bigint NOT NULL DEFAULT 0",
    'CREATE TABLE nexus.marks(version bigint NOT NULL, kind text COLLATE "C" NOT NULL,'
    ' name text COLLATE "C" NOT NULL, at double precision NOT NULL, until double precision NOT NULL,'
    " body bytea NOT NULL, sum bigint NOT NULL, PRIMARY KEY (kind, name))",
    "CREATE UNIQUE INDEX marks_version ON nexus.marks(version)",
)


def upgrade() -> None:
    """Add them."""
    for statement in _STATEMENTS:
        op.execute(statement)
