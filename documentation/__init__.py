"""The documentation site: pages generated from schemas, plugins, commands and docstrings, and the links between pages.

`make site` builds it with mkdocs, which calls `hooks`. Everything else here needs no mkdocs, so that the tests do not.
"""
