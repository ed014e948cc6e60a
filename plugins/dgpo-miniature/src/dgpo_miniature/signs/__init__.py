"""The world of signs: small images of short words, for rewards that read."""
