"""Exact forward passes for many edits at once: prefix contexts, keys, searches for v*, perplexities."""
