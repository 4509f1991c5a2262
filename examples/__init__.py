"""Training, evaluation and prediction with the networks of stripctx: the commands in this
folder."""
