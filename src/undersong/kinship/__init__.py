"""Kinship: could a trait cross between two models at all? The contract is DESIGN section 2's; the first plug-ins of this kind come with their own issue."""
