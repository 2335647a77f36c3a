"""One function a verb: the only place where the layers meet."""
