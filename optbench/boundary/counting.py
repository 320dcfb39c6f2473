"""Words for people: a number with its noun."""


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return "1 run", "2 runs", "1,126 runs", "0 entries".

    Args:
        count: How many.
        noun: What, in the singular.
        plural: The same in the plural, where no rule gives it.
    """
    return f"{count:,} {noun if count == 1 else plural or _plural(noun)}"


def agreeing(count: int, singular: str, plural: str) -> str:
    """Return the form of a verb or pronoun that agrees with a number, such as "is" with 1."""
    return singular if count == 1 else plural


def _plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2:-1] not in ("", *"aeiou"):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")
