"""Who plays the parts: a stage is a screenwriter, a painter, a reader and the words they share."""
