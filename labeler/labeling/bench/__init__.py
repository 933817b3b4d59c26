"""`labeler bench`: the speed of models in vLLM."""
