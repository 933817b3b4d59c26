"""Teachers on the nodes of a Ray cluster, which label one plan together."""
