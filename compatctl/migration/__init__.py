"""How one gets to a new model: every route, which one a plan names, and what a rewriting gains."""
