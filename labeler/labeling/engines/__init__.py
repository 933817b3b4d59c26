"""Engines that run the teacher: vLLM in process, a server, the transformers reference."""
