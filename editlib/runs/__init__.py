"""Analyses executed from notebooks: what a run depends on, its folder, its manifest, and how it is cited."""
