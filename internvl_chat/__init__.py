"""Distributed training of InternVL-family vision-language models (InternViT + MLP + LLM)."""

__version__ = "0.1.0"
