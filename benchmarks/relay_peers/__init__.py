"""Relays that ours is measured beside, each a process that prints "ready PORT", and the load that measures them."""
