# make.py holds the logic and works without make: python3 make.py --help
PYTHON ?= python3

.PHONY: help cookbook test lab lint faults clean notebooks readme reference
help:
	@$(PYTHON) make.py --help
cookbook test lab lint faults clean notebooks readme reference:
	@$(PYTHON) make.py $@
