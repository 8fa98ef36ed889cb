"""Observe: images become batches, activations become ranges, ranges become Q/DQ."""
