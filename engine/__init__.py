"""From cells to trained networks: settings, the training loop, saved states, rows and checkpoints.

Start at `grid.run_command`, then `loop.train`. Nothing here imports from reporting/ or a script.
"""
