"""Rows in a table of PostgreSQL with pgvector, which somebody else's application owns."""
