"""The web server: our REST and WebSocket routes, and the gate in front of everything."""
