import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbalign.config.synth import SpeakableConfig
from rbalign.text.speakable import speakability


@pytest.mark.parametrize(
    "text",
    [
        "What's the best way to cook salmon in under twenty minutes?",
        "I need a 30-minute workout plan for beginners, no equipment.",
        "Is it 10:30 or 11:30 in Berlin now?",
        "What is 15% of $80?",
        "If a train travels 60 miles in 2 hours, how fast is it?",
        "Plan a trip:\n1. Paris\n2. Rome\n3. Madrid",
        "Can you explain what e.g. and i.e. mean?",
        'What does "carpe diem" mean?',
        "Tell me about WWII & the Cold War",
        "Compare Python and Java for a beginner.",
        "Let's talk about the 1990s, the 80s and 9/11.",
        "Suggest a café in São Paulo",
        "I am 5'10\" and weigh 150 lbs. What's my BMI?",
        "What's a good name for my iPhone app?",
        "Should I class this as work?",
        "import taxes: how do they work?",
        "Question: what is the capital of Peru?",
    ],
)
def test_what_people_say_passes(text):
    assert speakability(text) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("1, 2, 3!", "empty"),
        ("word " * 81, "too long"),
        ("and then " * 21, "long sentence"),
        ("Explain 什么 to me", "script"),
        ("Translate: Привет", "script"),
        ("Write `print(1)` for me", "code"),
        ("public class Foo {\n int x;\n}", "code"),
        ("Use df.groupby() to sum", "code"),
        ("Create a function named get_user please", "code"),
        ("# Title\nSome text", "markdown"),
        ("This is **very** important", "markdown"),
        ("See [this](that)", "markdown"),
        ("| a | b |\n|---|---|", "table"),
        ("See https://example.org for more", "url"),
        ("Plot the file data.csv", "url"),
        ("Write to a@b.com", "url"),
        ("Solve 2x + 3 = 7 for me", "mathematics"),
        ("Given f(x), find its root", "mathematics"),
        (r"Find $\frac{1}{2}$ of it", "mathematics"),
        ("Integrate x² from zero", "mathematics"),
        ("A triangle has sides a = 3 and b = 4", "mathematics"),
        ("Dear [Your Name], thanks", "placeholder"),
        ("My name is ____ and I live here", "placeholder"),
        ("Ryan: Do you know where he lives? Enrique: In Spain", "dialogue"),
        ("Toby: Are there closed books?\nNick: Yes, there are.", "dialogue"),
        ("- one\n- two\n- three\n- four\n- five\n- six\n- seven", "long list"),
        ("Pack:\n- clothes\n  - socks\n- food", "nested list"),
        ("What is 123456789012 times two?", "digits"),
        ("Sort these: 12, 45, 33, 90, 21, 2", "digits"),
        ("so ~~ this <> is ^^ odd @@", "symbols"),
        ("I am SHOUTING VERY LOUD NOW TODAY AGAIN FRIEND", "emphasis"),
    ],
)
def test_what_nobody_says_is_refused_by_name(text, reason):
    assert reason in speakability(text)


@pytest.mark.parametrize(
    ("text", "reason", "strict", "loose"),
    [
        ("one two three four five", "too long", {"max_words": 4}, {"max_words": 5}),
        ("One two. Three four five.", "long sentence", {"max_sentence_words": 2}, {"max_sentence_words": 3}),
        ("Pack:\n- socks\n- shoes\n- tea", "long list", {"max_items": 2}, {"max_items": 3}),
        ("Pack:\n- clothes\n  - socks\n- food", "nested list", {"max_list_depth": 1}, {"max_list_depth": 2}),
        ("Call 12345678 now", "digits", {"max_number_digits": 7}, {"max_number_digits": 8}),
        # 10 of 20 characters are digits, in five numbers.
        ("Sort these: 11 22 33 44 55", "digits", {"max_digit_share": 0.49}, {"max_digit_share": 0.5}),
        # 1 of 10 characters is a symbol; 2 of 10 letters are Greek.
        ("Abc defg hi@", "symbols", {"max_symbol_share": 0.09}, {"max_symbol_share": 0.1}),
        ("abcd efgh δω", "script", {"max_foreign_share": 0.19}, {"max_foreign_share": 0.2}),
    ],
)
def test_what_can_be_said_is_the_recipes_to_say(text, reason, strict, loose):
    assert reason in speakability(text, SpeakableConfig(**strict))
    assert reason not in speakability(text, SpeakableConfig(**loose))


@pytest.mark.parametrize(
    "text",
    [
        "What is 2 + 2 = 4 about?",
        "Solve 2x + 3 = 7 for me",
        "Given f(x), find its root",
        "Is x^2 > 3 * y for x = 5?",
        "What is π × 2 ÷ 3?",
    ],
)
def test_mathematics_passes_where_it_may(text):
    assert "mathematics" in speakability(text)
    assert speakability(text, mathematics=True) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (r"Find $\frac{1}{2}$ of it", "latex"),
        ("Explain x = 2 in `print(x)`", "code"),
        ("What does Привет mean?", "script"),
        ("so @@ this is odd @@", "symbols"),
    ],
)
def test_nothing_else_passes_as_mathematics(text, reason):
    assert reason in speakability(text, mathematics=True)


@given(st.text())
def test_any_text_gets_an_answer(text):
    assert all(isinstance(reason, str) for reason in speakability(text))
