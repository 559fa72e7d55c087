"""One upgrade a file."""
