"""What gateway and worker share: the record, the event log, placement, settings. Never torch, never fastapi."""
