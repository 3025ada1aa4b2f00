"""The data sets, and the augmented views that an epoch consists of.

Start at `sources.load`. Nothing here imports from engine/ or reporting/.
"""
