"""Images in, views out: the data sets, and the augmented views that an epoch is made of.

`sources.load` is the way in. Nothing here knows of networks, losses or training, and nothing here
imports from engine/ or reporting/.
"""
