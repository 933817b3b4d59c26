"""Engines that run the teacher: vLLM in process, a served teacher, the transformers reference."""
