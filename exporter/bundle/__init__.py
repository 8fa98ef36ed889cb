"""A bundle: one folder or archive with everything that a device needs to run a model, and to check that it does."""
