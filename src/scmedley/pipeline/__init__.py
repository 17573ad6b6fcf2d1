"""A whole run, from a file to a folder of results."""
