"""The residual networks: what they are made of, how they are built, how a checkpoint tells which one it is.

``blueprint`` is plain data and needs no torch; ``resnet`` turns a blueprint into a module; ``variants`` holds
the names people know; ``checkpoint``, ``naming`` and ``infer`` go from a file to a blueprint.
"""
