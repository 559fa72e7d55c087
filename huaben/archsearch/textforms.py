"""How an architecture is written: a template with one field per position, rendered and read back.

``{3}`` stands for the code of position 3, ``{3:op}`` for its name; everything else is literal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import ConfigError, DataError

FIELD = re.compile(r"\{(\d+)(:op)?\}")


class TextForm:
    """A template over ``len(choices)`` positions.

    Args:
        template: every position once.
        choices: per position, the names of its choices.
        labels: per position, what to call it in an error.
        where: the JSON pointer of the template, for errors.

    Raises:
        ConfigError: for a missing or repeated position, or two fields that could not be told apart.
    """

    def __init__(
        self, template: str, choices: Sequence[Sequence[str]], labels: Sequence[str], *, where: str = "/encode"
    ) -> None:
        self.template = template
        self.choices = [list(names) for names in choices]
        self.labels = list(labels)
        fields = list(FIELD.finditer(template))
        self.fields = [(int(field[1]), field[2] is not None) for field in fields]
        order = [place for place, _ in self.fields]
        if sorted(order) != list(range(len(choices))):
            raise ConfigError(
                f"{where}: {template!r} has the fields {order}, expected each of 0 to {len(choices) - 1} once"
            )
        pattern, end = "", 0
        for field, (place, named) in zip(fields, self.fields, strict=True):
            single = not named and len(self.choices[place]) <= 10
            gap = template[end : field.start()]
            if end and not gap and not (single and pattern.endswith("(.)")):
                raise ConfigError(
                    f"{where}: field {place} follows another with nothing between", hint="add a separator"
                )
            pattern += re.escape(gap) + ("(.)" if single else "(.+?)")
            end = field.end()
        self.pattern = re.compile(pattern + re.escape(template[end:]), re.DOTALL)

    def render(self, codes: Sequence[int]) -> str:
        """Return the text of checked codes."""
        return FIELD.sub(
            lambda field: self.choices[int(field[1])][codes[int(field[1])]] if field[2] else str(codes[int(field[1])]),
            self.template,
        )

    def read(self, text: str, space: str) -> tuple[int, ...]:
        """Return the codes of a text.

        Raises:
            DataError: for text of another form or an unknown choice, naming the position.
        """
        match = self.pattern.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise DataError(
                f"{space}: {text!r} is not of the form {self.template}",
                hint=f"for example {self.render(self._zeros())}",
            )
        codes = [0] * len(self.choices)
        for (place, named), found in zip(self.fields, match.groups(), strict=True):
            names = self.choices[place]
            code = names.index(found) if named and found in names else -1
            if not named and found.isascii() and found.isdigit() and str(int(found)) == found:
                code = int(found)
            if not 0 <= code < len(names):
                raise DataError(
                    f"{space}: position {place} ({self.labels[place]}) of {text!r} is the unknown operation {found!r}",
                    hint="the choices are "
                    + ", ".join(names if named else (f"{i} = {n}" for i, n in enumerate(names))),
                )
            codes[place] = code
        return tuple(codes)

    def _zeros(self) -> tuple[int, ...]:
        return (0,) * len(self.choices)
