"""Students: causal LMs whose output head returns label log-probabilities."""
