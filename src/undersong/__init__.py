"""Undersong: run, measure, explain, audit and stop subliminal learning."""
