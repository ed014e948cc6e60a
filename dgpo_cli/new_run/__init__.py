"""What `dgpo init` writes a run file from: examples, presets, installed components and answers."""
