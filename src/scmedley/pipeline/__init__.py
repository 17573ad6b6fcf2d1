"""A whole run: from a file of cells to a folder of results."""
