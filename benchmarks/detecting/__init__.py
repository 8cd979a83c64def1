"""The parts of the detector benchmark (`benchmarks/detectors.py`): what is made, what is asked of it, what is counted."""
