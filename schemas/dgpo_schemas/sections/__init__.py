"""Sections of a run file. `dgpo_schemas.run` combines them into `RunConfig`."""
