"""One run: the loop, the update, mini-batches, checkpoints and going on from them."""
