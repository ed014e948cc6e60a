"""Read and write run directories: checkpoints, logs, configuration and metadata."""
