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
    ],
)
def test_numbers_and_marks_become_words(written, spoken):
    assert spoken_form(written) == spoken


@pytest.mark.parametrize(
    "text", ["COVID-19", "Call 555-1234", "on 9/11", "a 3:1 ratio", "GPT-4 and 5G", "on 2023-10-05", "a 5'2 man"]
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
]


@given(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join) | st.text())
def test_a_spoken_form_is_one_line_and_its_own_spoken_form(text):
    spoken = spoken_form(text)
    assert len(spoken.splitlines()) <= 1
    assert spoken_form(spoken) == spoken
