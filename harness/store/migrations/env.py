"""What alembic runs to migrate: on the connection, and in the transaction, of its caller.

Input: config.attributes["connection"]. Output: the tables of the revision asked for.
"""

from alembic import context

from harness.store.tables import METADATA

VERSION_TABLE = "fleetcut_version"  # a lab's database may hold another program's alembic_version

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
)
context.run_migrations()
