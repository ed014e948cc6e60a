"""How plugins are found, built and held to what they declare."""
