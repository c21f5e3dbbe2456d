"""The embedded testbed: an invented world, prose about it, and the twin models trained on that prose."""
