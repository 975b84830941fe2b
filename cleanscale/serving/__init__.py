"""What answers for a registered model: prediction from a folder of weights and arrays, without Ray or a run folder.

These modules, and what they import of the package, travel with every registered model.
"""
