"""Runtimes with one vocabulary, a module each: copy this folder into a project and it works."""
