"""The parts of examples/train.py: recipes, the training loop, checkpoints, the log."""
