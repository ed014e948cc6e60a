"""What the plugin brings."""
