"""From cells to trained networks: what is trained, the loop, its saved state and what it leaves.

`grid.run_command` is the way in; `loop.train` is the story, and reads top to bottom. Nothing here
imports from reporting/ or from a script; of the root's files it uses the losses and utils.py.
"""
