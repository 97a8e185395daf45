"""Hydra's way in: a launcher that runs all cells as one study, and a sweeper that does not compose twice."""
