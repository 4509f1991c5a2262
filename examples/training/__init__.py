"""What examples/train.py stands on: recipes, the loop, checkpoints, the log."""
