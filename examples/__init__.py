"""Training, scoring and looking at the networks of stripctx; see the commands in this folder."""
