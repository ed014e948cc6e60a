"""Tensors alone: flow-matching mathematics, keyed draws, groups, schedules."""
