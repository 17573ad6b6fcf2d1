"""From AnnData to the input of the training loop."""
