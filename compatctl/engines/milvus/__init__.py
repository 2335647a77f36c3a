"""Milvus: a collection that an application owns, and the properties by which it is switched."""
