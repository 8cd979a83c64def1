"""Simulated backend and recipe with a known trait strength: ground truth for tests."""
