"""How fast vLLM runs models."""
