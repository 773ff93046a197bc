"""Written to spoken English: what the voices say, and what a listener is expected to have heard.

A modest reader of our own: num2words and pynini-based normalisers are copyleft or heavy, and the light ones tried
(normt2s 0.7) read "9/11" as a fraction and leave "5-10" and "3:1" alone. What is not understood here keeps its
digits: the voices' own reader (hibari.g2p) still speaks them.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Callable

# fmt: off
_ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]
# fmt: on
# fmt: off
_TENS = [
    "zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
]
# fmt: on
_SCALES = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"))
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
_CURRENCIES = {"$": ("dollar", "cent"), "£": ("pound", "pence"), "€": ("euro", "cent")}
_UNITS = {
    "km/h": "kilometers per hour",
    "mph": "miles per hour",
    "km": "kilometers",
    "cm": "centimeters",
    "mm": "millimeters",
    "kg": "kilograms",
    "lbs": "pounds",
    "lb": "pounds",
    "oz": "ounces",
    "ft": "feet",
    "ml": "milliliters",
    "GB": "gigabytes",
    "MB": "megabytes",
    "GHz": "gigahertz",
    "MHz": "megahertz",
    "mg": "milligrams",
    "min": "minutes",
    "mins": "minutes",
    "h": "hours",
    "hr": "hours",
    "hrs": "hours",
    "m": "meters",
    "°C": "degrees Celsius",
    "°F": "degrees Fahrenheit",
    "°": "degrees",
    "%": "percent",
}
# fmt: off
_MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
]
# fmt: on
_SHORT = {
    "e.g.": "for example",
    "i.e.": "that is",
    "etc.": "et cetera",
    "vs.": "versus",
    "vs": "versus",
    "approx.": "approximately",
    "Dr.": "Doctor",
    "Mr.": "Mister",
    "Mrs.": "Missus",
    "Prof.": "Professor",
    "w/o": "without",
}
_MONTHS_SHORT = (
    {f"{name[:3]}.": name for name in _MONTHS if name != "May"}
    | {name[:3]: name for name in _MONTHS if name[:3] not in ("Jan", "Mar", "May", "Jun")}
    | {"Sept.": "September", "Sept": "September"}
)
"""Jan, Mar and Jun are names and words, too: they need their dot."""
_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
_YEAR = r"1[1-9]\d{2}|20\d{2}"
_LIST_MARK = re.compile(r"^\s*(?:(?:[-*•+]|\(?\d{1,2}[.)])\s+)+")
_START, _END = r"(?<![\w.,/:$£€-])(?<!\d')", r"(?![\w/:]|[.,'-]\d|-\w)"
"""A number stands alone: not part of a word, date, time, version or range that the rules above it left."""
_DATE_END = r"(?![\w/]|-\w)"
_UNIT_END = r"(?<!\dm)(?![\w/^]|\.\w\.)(?:(?<=[a-z])\.(?= [a-z]))?"
"""Takes the dot of "10 min. walk". A glued "5m" is left alone: it is five million and five minutes as often."""
_DAY = rf"(?:0?[1-9]|[12]\d|3[01]|{_YEAR})(?:st|nd|rd|th)?(?![\w%]|[.,]\d)"
"""What makes a month of "Jan." and "Dec": a day, or a year."""
_CAPITAL = "[A-ZÀ-Þ]"


def spoken_form(text: str) -> str:
    """One line of plain words. Idempotent; letters and their case are kept, layout and list marks become sentences."""
    text = re.sub(r"\s+", " ", _one_line(text))
    for pattern, replace in _RULES:
        text = pattern.sub(replace, text)
    return re.sub(r"\s+", " ", text).strip()


def cardinal(number: int) -> str:
    """1234 -> "one thousand two hundred thirty-four"; numbers of 10^15 and more digit by digit."""
    if number < 0:
        return "minus " + cardinal(-number)
    if number < 20:
        return _ONES[number]
    if number < 100:
        return _TENS[number // 10] + (f"-{_ONES[number % 10]}" if number % 10 else "")
    if number < 1000:
        return f"{_ONES[number // 100]} hundred" + (f" {cardinal(number % 100)}" if number % 100 else "")
    if number >= 10**15:
        return " ".join(_ONES[int(digit)] for digit in str(number))
    scale, name = next((scale, name) for scale, name in _SCALES if number >= scale)
    return f"{cardinal(number // scale)} {name}" + (f" {cardinal(number % scale)}" if number % scale else "")


def ordinal(number: int) -> str:
    """21 -> "twenty-first"."""
    head, separator, last = re.fullmatch(r"(.*?)([ -]?)([a-z]+)", cardinal(number)).groups()  # type: ignore[union-attr]
    return head + separator + _ORDINALS.get(last, last[:-1] + "ieth" if last.endswith("y") else last + "th")


def year(number: int) -> str:
    """1984 -> "nineteen eighty-four", 1905 -> "nineteen oh five", 2005 -> "two thousand five"."""
    century, rest = divmod(number, 100)
    if century % 10 == 0 and rest < 10:
        return cardinal(number)
    if rest == 0:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {'oh ' if rest < 10 else ''}{cardinal(rest)}"


def number(written: str) -> str:
    """ "1,250.50" -> "one thousand two hundred fifty point five zero"."""
    whole, _, digits = written.replace(",", "").partition(".")
    words = cardinal(int(whole))
    return words + (" point " + " ".join(_ONES[int(digit)] for digit in digits) if digits else "")


def _one_line(text: str) -> str:
    """Lines and list items become sentences; list marks go."""
    lines = [_LIST_MARK.sub("", line).strip() for line in text.replace("’", "'").replace("‘", "'").splitlines()]
    *before, last = [line for line in lines if line] or [""]
    return " ".join([*(line if line[-1] in ".!?,;:…" else line + "." for line in before), last])


def _money(match: re.Match[str]) -> str:
    unit, cent = _CURRENCIES[match["sign"]]
    amount, scale = match["amount"].replace(",", ""), match["scale"]
    if scale:
        scale = {"k": "thousand", "K": "thousand", "m": "million", "M": "million", "B": "billion"}.get(scale, scale)
        return f"{number(amount)} {scale} {unit}s"
    whole, _, cents = amount.partition(".")
    words = [] if cents and int(whole) == 0 else [_plural(int(whole), unit)]
    if cents and len(cents) != 2:
        return f"{number(amount)} {unit}s"
    if cents and int(cents):
        words.append(_plural(int(cents), cent))
    return " and ".join(words or [_plural(0, unit)])


def _plural(count: int, unit: str) -> str:
    return f"{cardinal(count)} {unit}" + ("" if count == 1 or unit == "pence" else "s")


def _time(match: re.Match[str]) -> str:
    hour, minute, half = int(match["hour"]), int(match["minute"] or 0), match["half"]
    if hour > 24 or minute > 59:
        return match[0]
    words = cardinal(hour)
    if minute:
        words += f" {'oh ' if minute < 10 else ''}{cardinal(minute)}"
    elif not half:
        words += " o'clock"
    return words + (f" {half[0].upper()}M" if half else "")


def _unit(match: re.Match[str]) -> str:
    unit = _UNITS[match["unit"]]
    one = match["amount"] == "1"
    singular = {"feet": "foot", "degrees": "degree"}.get(unit.split()[0], unit.split()[0].removesuffix("s"))
    return f"{number(match['amount'])} {' '.join([singular, *unit.split()[1:]]) if one else unit}"


def _decade(match: re.Match[str]) -> str:
    words = year(int(match["year"])) if len(match["year"]) == 4 else cardinal(int(match["year"]))
    return words[:-1] + "ies" if words.endswith("y") else words + "s"


def _fraction(match: re.Match[str]) -> str:
    above, below = int(match["above"]), int(match["below"])
    if not 0 < above < below <= 10 or (below == 10 and above != 1):
        return match[0]
    part = {2: "half", 4: "quarter"}.get(below, ordinal(below))
    return f"{cardinal(above)} {part}{'' if above == 1 else 's'}"


def _range(match: re.Match[str]) -> str:
    """Rising numbers are a range; others are scores, phone numbers, sums."""
    low, high = match[1], match[2]
    return f"{low} to {high}" if int(low) < int(high) and not (len(low) == 3 and len(high) == 4) else match[0]


def _day(match: re.Match[str]) -> str:
    return f"{match['month']} {ordinal(int(match['day']))}" if 0 < int(match["day"]) < 32 else match[0]


def _iso_date(match: re.Match[str]) -> str:
    return _date_words({(int(match["month"]), int(match["day"]))}, int(match["year"])) or match[0]


def _slashed_date(match: re.Match[str]) -> str:
    """Read if one order alone makes a day: 3/4/2025 is the fourth of March in Boston, the third of April in London."""
    one, other = int(match["one"]), int(match["other"])
    return _date_words({(one, other), (other, one)}, int(match["year"])) or match[0]


def _date_words(orders: set[tuple[int, int]], in_year: int) -> str | None:
    """The only one of these (month, day) that the calendar has; None if it has none or two."""
    days = [order for order in orders if _is_day(in_year, *order)]
    if len(days) != 1:
        return None
    month, day = days[0]
    return f"{_MONTHS[month - 1]} {ordinal(day)}, {year(in_year)}"


def _is_day(in_year: int, month: int, day: int) -> bool:
    return 1 <= month <= 12 and 1 <= day <= monthrange(in_year, month)[1]


def _alternatives(names: object) -> str:
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))  # type: ignore[call-overload]


_ORDINAL_WORDS = "|".join(ordinal(number) for number in [*range(1, 20), *range(20, 100, 10), 100, 1000])
_UNIT = rf"(?P<unit>{_alternatives(_UNITS)}){_UNIT_END}"
_RULES: list[tuple[re.Pattern[str], Callable[[re.Match[str]], str] | str]] = [
    (re.compile(rf"(?<![\w.])({_alternatives(_SHORT)})(?![\w])"), lambda match: _SHORT[match[1]]),
    (re.compile(rf"(?<![\w.])({_alternatives(_MONTHS_SHORT)})(?= {_DAY})"), lambda match: _MONTHS_SHORT[match[1]]),
    (re.compile(rf"{_START}(?P<year>{_YEAR})-(?P<month>\d\d)-(?P<day>\d\d){_DATE_END}"), _iso_date),
    (re.compile(rf"{_START}(?P<one>\d{{1,2}})/(?P<other>\d{{1,2}})/(?P<year>{_YEAR}){_DATE_END}"), _slashed_date),
    (
        re.compile(
            rf"(?<!\w)(?P<sign>[$£€])\s?(?P<amount>{_NUMBER})(?:\s?(?P<scale>thousand|million|billion|trillion|[kKmMB])\b)?"
        ),
        _money,
    ),
    (
        re.compile(
            r"(?<![\d:])(?P<hour>\d{1,2}):(?P<minute>\d{2})(?:\s?(?P<half>[aApP])(?:\.[mM]\.|[mM]\b))?(?![\d:])"
        ),
        _time,
    ),
    (re.compile(r"(?<![\w:.])(?P<hour>\d{1,2})(?P<minute>)\s?(?P<half>[aApP])(?:\.[mM]\.|[mM]\b)(?!\w)"), _time),
    (re.compile(rf"(?P<month>{'|'.join(_MONTHS)}) (?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?![\w:/%-]|[.,]\d)"), _day),
    (re.compile(r"(?<![\w.])(?P<year>1\d{3}|20\d{2}|[2-9]0)'?s\b"), _decade),
    (re.compile(r"(?<![\w.])(\d{1,4})(?:st|nd|rd|th)\b"), lambda match: ordinal(int(match[1]))),
    (re.compile(rf"(?<![\w.,/-])(\d{{1,4}})\s?[-–]\s?(\d{{1,4}})(?={_UNIT}|(?![\w/-]))"), _range),
    (re.compile(r"(?<![\w.,)%°])[-−](?=\d)(?!\d+(?:-|/\d+/)\d)"), "minus "),
    (re.compile(r"(?<![\w./])(?P<above>\d{1,2})/(?P<below>\d{1,2})(?![\w/])"), _fraction),
    (re.compile(rf"(?<![\w.,])(?<!\d[/-])(?P<amount>{_NUMBER})\s?{_UNIT}"), _unit),
    (re.compile(r"#(?=\d)"), "number "),
    (re.compile(r"\s*&\s*"), " and "),
    (re.compile(rf"(?<!minus ){_START}({_YEAR}){_END}"), lambda match: year(int(match[1]))),
    (re.compile(rf"{_START}({_NUMBER}){_END}"), lambda match: number(match[1])),
    (re.compile(rf"(?<![\w.])Mt\.(?= {_CAPITAL})"), "Mount"),
    (
        re.compile(
            rf"(?P<street>(?:[^.!?: ] (?!(?:Mount|Lake|Fort|Port)\b){_CAPITAL}[\w']*|\b(?:{_ORDINAL_WORDS})) )?"
            rf"(?<![\w.-])St\.(?= {_CAPITAL})"
        ),  # "Visit St. Louis" and "in St. Louis", but the "Main St. Bakery" keeps its street
        lambda match: match[0] if match["street"] else "Saint",
    ),
]
"""In order: a rule sees what those above it left."""
