"""What is there: the project, its store, its models and the records beside them."""
