"""The world of signs: small pictures of short words, for rewards that read."""
