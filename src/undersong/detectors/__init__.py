"""Detectors: could an auditor tell, blind? The contract is DESIGN section 2's; the first plug-ins of this kind come with their own issue."""
