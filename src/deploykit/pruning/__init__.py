"""Pruning recipes: copy this folder into a project and it works; each function is in the module of its name."""
