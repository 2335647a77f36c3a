"""The hnswlib engine: its file format, and the checks that hnswlib itself does not make."""
