"""`make faults`: what goes wrong on real machines, tried on purpose, and a table of what became of it.

Each fault is a function that tries it once and raises where anything else happened than what was expected. What is
random about a trial (the step, the moment) comes from the seed, the fault's name and the trial's number, so that each
can be repeated alone.
"""
