"""The components that come with the engine: samplers, weightings, timestep policies and the `dgpo` objective.

They are plugins like any other: `plugin` declares them, and nothing else in the engine knows their names.
"""
