"""Mitigations: does this stop it, at what cost? The contract is DESIGN section 2's; the first plug-ins of this kind come with their own issue."""
