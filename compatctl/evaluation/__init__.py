"""What is measured: held-out queries, both models on the same gallery, and the verdict."""
