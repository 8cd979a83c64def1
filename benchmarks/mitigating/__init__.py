"""The parts of the mitigation bench (`benchmarks/mitigations.py`): what is made, what is read of it, what is counted."""
