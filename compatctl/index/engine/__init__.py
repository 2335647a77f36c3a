"""Rows in a table of PostgreSQL or a collection of Milvus, which an application owns."""
