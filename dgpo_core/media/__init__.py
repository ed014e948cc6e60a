"""Images and clips: read, written, shown."""
