"""Run a model that exists on arrays, and measure what comes out.

Backends import their library when they are opened, never when this package is imported.
"""
