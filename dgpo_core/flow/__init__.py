"""Flow-matching mathematics on tensors: velocities, noise schedules, group advantages."""
