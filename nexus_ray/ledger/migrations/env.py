"""What alembic runs to carry out migrations: on the connection that it is given, in the transaction that is open.

Law: a migration is one transaction, so a database holds the schema before it or the one after it.
"""

from alembic import context

context.configure(connection=context.config.attributes["connection"], version_table_schema="nexus")
context.run_migrations()
