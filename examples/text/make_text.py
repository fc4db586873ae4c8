"""Write harbour.txt: a text of Castor's own making, from sentences with blanks.

    python examples/text/make_text.py > examples/text/harbour.txt

Nothing in it is taken from anywhere, so it may be shipped under this repository's licence. It is
no literature: it is there because a language model learns its patterns in a few iterations.
"""

from __future__ import annotations

import random
import sys

PEOPLE = "the pilot|the baker|an old sailor|the keeper|a young clerk|the ferryman|Mara|Jonas|Ilse"
PLACES = "the harbour|the lighthouse|the market|the north pier|the island|the rope yard|the inn"
THINGS = "a letter|two lanterns|the ledger|a basket of eels|the brass key|a coil of rope|the map"
TIMES = "At dawn|Before noon|In the evening|After the storm|On the first day of spring|That night"
DEEDS = "carried|found|lost|hid|sold|mended|remembered|counted|wrapped|asked for"
WEATHER = "the fog lay low|the wind turned west|rain fell on the roofs|the tide was out|it snowed"
ENDS = "and nobody saw it|and said nothing|as every year|for the third time|and smiled|too late"
FORMS = [
    "{time} {person} {deed} {thing} at {place}.",
    "{time}, when {weather}, {person} {deed} {thing} {end}.",
    "{person} went to {place}, because {other} had {deed} {thing}.",
    '"Who {deed} {thing}?" asked {person}. "I did," said {other}, "at {place}."',
    "At {place} {weather}, {end}.",
    "{person} and {other} {deed} {thing}, {end}.",
]


def sentence(draw: random.Random) -> str:
    people = PEOPLE.split("|")
    text = draw.choice(FORMS).format(
        time=draw.choice(TIMES.split("|")),
        person=draw.choice(people),
        other=draw.choice(people),
        deed=draw.choice(DEEDS.split("|")),
        thing=draw.choice(THINGS.split("|")),
        place=draw.choice(PLACES.split("|")),
        weather=draw.choice(WEATHER.split("|")),
        end=draw.choice(ENDS.split("|")),
    )
    return text[0].upper() + text[1:]


def main() -> None:
    draw = random.Random(2023)  # noqa: S311 - no secret hangs on it
    written = 0
    while written < 200_000:
        paragraph = " ".join(sentence(draw) for _ in range(draw.randint(3, 8))) + "\n\n"
        sys.stdout.write(paragraph)
        written += len(paragraph)


if __name__ == "__main__":
    main()
