"""Discover plugins, build their components, and check them against their contracts."""
