"""Explainers: why did a trait cross?

The contract is in DESIGN section 2; the first plug-ins come with an issue of their own.
"""
