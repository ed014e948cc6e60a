"""Operating system: files, signals, child processes, proxies, devices and OpenMP threads."""
