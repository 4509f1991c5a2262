"""Commands for training, evaluation and prediction with the networks of stripctx."""
