# make.py holds the logic and works without make: python3 make.py --help
PYTHON ?= python3

.PHONY: help cookbook book test lab lint faults clean notebooks readme reference workshop canary
help:
	@$(PYTHON) make.py --help
cookbook book test lab lint faults clean notebooks readme reference workshop canary:
	@$(PYTHON) make.py $@
