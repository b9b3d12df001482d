"""Faults, injected into real processes; README.md says which test proves which."""
