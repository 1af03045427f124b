"""The first schema of a PostgreSQL ledger: the tables of the SQLite one, and what several writers need beside them.

Law: ids compare by their bytes, wherever the server's language is set, because pages of goals are cut by comparing.
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# `head` is one row that every transaction updates before it writes, and holds until its commit: so numbers have no
# gaps and are in the order of the commits, and fences and the lease are in that order too.
# `writers` holds for each writing process the number of its newest committed batch: what tells, after a connection
# was lost in mid-commit, whether there was one. Both rows change all the time, in place if their page has room.
_TABLES = """
CREATE TABLE nexus.head(
  id boolean PRIMARY KEY DEFAULT true CHECK (id), seq bigint NOT NULL DEFAULT 0, epoch bigint NOT NULL DEFAULT 0,
  fences bigint NOT NULL DEFAULT 0, lease_holder text NOT NULL DEFAULT '',
  lease_until timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 10);
INSERT INTO nexus.head DEFAULT VALUES;
CREATE TABLE nexus.writers(
  id text PRIMARY KEY, batch bigint NOT NULL DEFAULT 0, seen_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 10);
CREATE TABLE nexus.fenced(host text COLLATE "C" PRIMARY KEY);
CREATE TABLE nexus.journal(
  seq bigint PRIMARY KEY, goal_id text COLLATE "C" NOT NULL, kind text COLLATE "C" NOT NULL,
  at double precision NOT NULL, step_key text COLLATE "C", body bytea NOT NULL, sum bigint NOT NULL
);
CREATE UNIQUE INDEX journal_steps ON nexus.journal(goal_id, step_key) INCLUDE (seq);
CREATE INDEX journal_questions ON nexus.journal(seq) WHERE kind = 'asked';
CREATE TABLE nexus.goals(
  id text COLLATE "C" PRIMARY KEY, type text COLLATE "C" NOT NULL, principal text COLLATE "C" NOT NULL,
  parent text COLLATE "C" NOT NULL, accepted_at double precision NOT NULL, deadline_at double precision NOT NULL,
  headers text NOT NULL, idempotency_key text COLLATE "C" NOT NULL, accepted_seq bigint NOT NULL, sum bigint NOT NULL,
  status text COLLATE "C" NOT NULL, host text COLLATE "C" NOT NULL, cancel_by text NOT NULL, finished_seq bigint,
  finished_at double precision, failure text, answered_by text NOT NULL, standing_sum bigint NOT NULL
);
CREATE UNIQUE INDEX goals_idempotency ON nexus.goals(principal, idempotency_key) WHERE idempotency_key <> '';
CREATE INDEX goals_unfinished ON nexus.goals(id) WHERE finished_seq IS NULL;
CREATE INDEX goals_parent ON nexus.goals(parent, id) WHERE parent <> '';
CREATE INDEX goals_principal ON nexus.goals(principal, id);
CREATE INDEX goals_ended_badly ON nexus.goals(status, id) WHERE status IN ('failed', 'cancelled', 'expired');
CREATE TABLE nexus.agent_states(
  type text COLLATE "C" NOT NULL, key text COLLATE "C" NOT NULL, version bigint NOT NULL, schema bigint NOT NULL,
  body bytea NOT NULL, sum bigint NOT NULL, PRIMARY KEY (type, key)
);
"""


def upgrade() -> None:
    """Make the tables."""
    for statement in _TABLES.split(";\n"):
        if statement.strip():
            op.execute(statement)
