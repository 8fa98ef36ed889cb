"""From a pipeline file to a folder: stages that are done once, and again only when something they use has changed."""
