"""Students: causal language models whose output head returns label log-probabilities."""
