"""Pictures and clips: read, written, shown."""
