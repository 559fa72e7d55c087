"""The command line: ``main.py`` and one module a verb, each imported when its verb is used."""
