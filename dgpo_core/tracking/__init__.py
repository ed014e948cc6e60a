"""Experiment trackers: what a run shows to TensorBoard, Weights & Biases and MLflow.

`tracker` is their contract, one module each implements it, and `several` calls those of the run file, of which none may
stop a run. What is tracked is decided by the observer of the training loop (`dgpo_core.training.observers`).
"""
