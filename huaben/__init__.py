"""huaben: a bilingual studio that turns a conversation into pictures.

Importing the package does no work: every room is imported where it is used.
"""

__version__ = "0.1.0"
