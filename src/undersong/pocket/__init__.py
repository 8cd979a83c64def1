"""Pocket: tiny chat models with a known family tree, shipped in the package."""
