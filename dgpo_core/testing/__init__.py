"""Help for tests of the engine and of plugins: a toy model that trains in milliseconds (`toy`), and checks that a part
keeps its contract (`contracts`).

Importing this package imports nothing heavy; its modules need torch.
"""
