"""A family tree of pocket models with a known truth, and what kinship tests say of it (`benchmarks/kinship.py`)."""
