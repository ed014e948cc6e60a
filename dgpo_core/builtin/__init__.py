"""Built-in components: samplers, weightings, timestep policies and the `dgpo` objective.

They are ordinary plugins, declared in `plugin`; the rest of the engine does not refer to them by name.
"""
