# make.py holds the logic and works without make: python3 make.py --help
PYTHON ?= python3

.PHONY: help cookbook test lab lint clean notebooks readme
help:
	@$(PYTHON) make.py --help
cookbook test lab lint clean notebooks readme:
	@$(PYTHON) make.py $@
