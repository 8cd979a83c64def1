"""Kinship: could a trait cross between two models at all?

The contract is in DESIGN section 2; the first plug-ins come with an issue of their own.
"""
