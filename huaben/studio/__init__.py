"""The studio: one service behind a page, an API and the command line. Needs the extra ``studio``."""
