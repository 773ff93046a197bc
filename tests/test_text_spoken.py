import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbalign.text.normalise import for_wer
from rbalign.text.spoken import cardinal, number, ordinal, spoken_form, year


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("It costs $3.50, or 20% off.", "It costs three dollars and fifty cents, or twenty percent off."),
        ("$1 or $0.50, £5, €1.2 million", "one dollar or fifty cents, five pounds, one point two million euros"),
        (
            "In 1999, 3,000 people met at 7:30pm.",
            "In nineteen ninety-nine, three thousand people met at seven thirty PM.",
        ),
        ("Is 9:05 a.m. or 10am or 6:00 fine?", "Is nine oh five AM or ten AM or six o'clock fine?"),
        ("On May 5 and the 21st, 2024", "On May fifth and the twenty-first, twenty twenty-four"),
        ("the 1990s and the 80s", "the nineteen nineties and the eighties"),
        ("What is 2/3 of 100?", "What is two thirds of one hundred?"),
        ("25°C & 10 km/h, 1 kg", "twenty-five degrees Celsius and ten kilometers per hour, one kilogram"),
        ("5-10 days", "five to ten days"),
        ("it is -5 or 0.5", "it is minus five or zero point five"),
        ("Dr. Smith vs. me, e.g. today", "Doctor Smith versus me, for example today"),
        ("- apples\n- 3 pears", "apples. three pears"),
        ("- - Pay", "Pay"),
        ("Plan:\n\n1. Rome\n2. Paris", "Plan: Rome. Paris"),
        ("What’s   this?", "What's this?"),
        ("Is 3/14/2025 free?", "Is March fourteenth, twenty twenty-five free?"),
        ("on 14/3/2025, or 5/5/1905", "on March fourteenth, twenty twenty-five, or May fifth, nineteen oh five"),
        (
            "From 2025-03-04: 02/29/2024.",
            "From March fourth, twenty twenty-five: February twenty-ninth, twenty twenty-four.",
        ),
        ("On Jan. 5 and Feb.  14th, Sept. 3", "On January fifth and February fourteenth, September third"),
        ("Dec 25, Mar. 1-3 and Oct 2025", "December twenty-fifth, March one to three and October twenty twenty-five"),
        ("Visit St. Louis, not Mt. Fuji", "Visit Saint Louis, not Mount Fuji"),
        ("Who climbed Mt. St. Helens by St.  Émile?", "Who climbed Mount Saint Helens by Saint Émile?"),
        ("1 m, 5 min, 2 hrs, 1 hr and 24h", "one meter, five minutes, two hours, one hour and twenty-four hours"),
        (
            "3.5 GHz, 1 MHz, 16GB and 512 MB",
            "three point five gigahertz, one megahertz, sixteen gigabytes and five hundred twelve megabytes",
        ),
        ("a 10 min. walk of 1,000 m. Then 5 mins.", "a ten minutes walk of one thousand meters. Then five minutes."),
        ("-5°C, -1 km or −40 °F", "minus five degrees Celsius, minus one kilometer or minus forty degrees Fahrenheit"),
        ("5 -10°C, 5%-6%", "five to ten degrees Celsius, five percent-six percent"),
        ("20-30min or 8–16 GB", "twenty to thirty minutes or eight to sixteen gigabytes"),
        ("-1/2 and -1999", "minus one half and minus one thousand nine hundred ninety-nine"),
        ("5 m^2 at 5 m.p.h.", "five m^two at five m.p.h."),
        ("Jan 5, Jun 6", "Jan five, Jun six"),
        ("$5m, €2 m", "five million dollars, two million euros"),
    ],
)
def test_numbers_and_marks_become_words(written, spoken):
    assert spoken_form(written) == spoken


@pytest.mark.parametrize(
    "text",
    [
        "COVID-19",
        "Call 555-1234",
        "on 9/11",
        "a 3:1 ratio",
        "GPT-4 and 5G",
        "a 5'2 man",
        "on 3/4/2025",
        "on 13/14/2025 or 2/29/2025",
        "on 2025-02-30 or 2025-13-01",
        "on 12/25/24",
        "log-2025-03-14",
        "at -2025-03-14",
        "7-5-10h",
        "5m people",
        "on Main St. Bakery",
        "off forty-second St. Where?",
        "St. patrick",
        "Mt. five",
        "Jan. said",
    ],
)
def test_what_is_not_understood_keeps_its_digits(text):
    assert spoken_form(text) == text


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (20, "twenty"),
        (101, "one hundred one"),
        (1234, "one thousand two hundred thirty-four"),
        (1_000_000, "one million"),
        (-7, "minus seven"),
    ],
)
def test_cardinals(value, words):
    assert cardinal(value) == words


def test_ordinals_years_and_decimals():
    assert [ordinal(n) for n in (1, 3, 12, 20, 21, 100, 105)] == [
        "first", "third", "twelfth", "twentieth", "twenty-first", "one hundredth", "one hundred fifth",
    ]  # fmt: skip
    assert [year(n) for n in (1500, 1905, 1984, 2000, 2005, 2024)] == [
        "fifteen hundred", "nineteen oh five", "nineteen eighty-four", "two thousand", "two thousand five",
        "twenty twenty-four",
    ]  # fmt: skip
    assert number("1,250.50") == "one thousand two hundred fifty point five zero"


@given(st.integers(2, 10**14))
def test_a_cardinal_can_be_read_back(value):
    assert for_wer(cardinal(value)) == str(value)


WORDS = [
    "Pay",
    "$5",
    ",",
    "10%",
    "3.5",
    "km",
    "7:30pm",
    "1999",
    "2nd",
    "May",
    "5",
    "1/2",
    "-",
    "\n",
    "&",
    "Dr.",
    "#1",
    "1,000",
    "it's",
    "£2.50",
    "10-20",
    "hi.",
    "(",
    ")",
    "80s",
    "'98",
    "-3",
    "2025-03-14",
    "3/14/2025",
    "Jan.",
    "Main",
    "42nd",
    "St.",
    "Mt.",
    "m",
    "min.",
    "h",
    "-5°C",
]


@given(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join) | st.text())
def test_a_spoken_form_is_one_line_and_its_own_spoken_form(text):
    spoken = spoken_form(text)
    assert len(spoken.splitlines()) <= 1
    assert spoken_form(spoken) == spoken
