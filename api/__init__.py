"""The gateway: REST, WebSocket and the page. Never torch, never worker."""
