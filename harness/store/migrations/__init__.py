"""Alembic's folder: env.py and versions/, one file a change of the tables, in order."""
