"""House checks: what holds for all notebooks, recipes and sources. Each also fails when nothing is there to check."""
