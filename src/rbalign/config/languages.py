"""The languages that a recipe may name: ISO 639-1 codes that py3langid tells apart, with their English names."""

from __future__ import annotations

from rbalign.errors import unknown

# fmt: off
LANGUAGES = {
    "af": "Afrikaans", "am": "Amharic", "ar": "Arabic", "az": "Azerbaijani", "be": "Belarusian", "bg": "Bulgarian",
    "bn": "Bengali", "bs": "Bosnian", "ca": "Catalan", "cs": "Czech", "cy": "Welsh", "da": "Danish", "de": "German",
    "el": "Greek", "en": "English", "es": "Spanish", "et": "Estonian", "eu": "Basque", "fa": "Persian",
    "fi": "Finnish", "fr": "French", "ga": "Irish", "gl": "Galician", "gu": "Gujarati", "he": "Hebrew", "hi": "Hindi",
    "hr": "Croatian", "hu": "Hungarian", "hy": "Armenian", "id": "Indonesian", "is": "Icelandic", "it": "Italian",
    "ja": "Japanese", "ka": "Georgian", "kk": "Kazakh", "km": "Khmer", "kn": "Kannada", "ko": "Korean", "lo": "Lao",
    "lt": "Lithuanian", "lv": "Latvian", "mk": "Macedonian", "ml": "Malayalam", "mn": "Mongolian", "mr": "Marathi",
    "ms": "Malay", "mt": "Maltese", "ne": "Nepali", "nl": "Dutch", "no": "Norwegian",
    "pa": "Punjabi", "pl": "Polish", "ps": "Pashto", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian",
    "si": "Sinhala", "sk": "Slovak", "sl": "Slovenian", "sq": "Albanian", "sr": "Serbian", "sv": "Swedish",
    "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "th": "Thai", "tl": "Tagalog", "tr": "Turkish", "ug": "Uyghur",
    "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "xh": "Xhosa", "zh": "Chinese", "zu": "Zulu",
}
# fmt: on

# fmt: off
NOT_LATIN = frozenset({
    "am", "ar", "be", "bg", "bn", "el", "fa", "gu", "he", "hi", "hy", "ja", "ka", "kk", "km", "kn", "ko", "lo", "mk",
    "ml", "mn", "mr", "ne", "pa", "ps", "ru", "si", "sr", "ta", "te", "th", "ug", "uk", "ur", "zh",
})
# fmt: on
"""Languages that are written in another script than Latin."""
UNSPACED = frozenset({"ja", "km", "lo", "th", "zh"})
"""Languages that write no spaces between words."""
UNHEARD = frozenset({"ga", "ug", "xh", "zu"})
KNOWN_TO_WHISPER = frozenset(LANGUAGES) - UNHEARD
"""Languages that Whisper knows, of those that a recipe may name; the others are four."""
CERTAINTY = 0.9
"""Posterior from which a short text is in the language that py3langid names: below about six words it is unsure."""


def language_name(code: str) -> str:
    """ "de" -> "German". UsageError for a code that is not in the table."""
    if code not in LANGUAGES:
        raise unknown("language", code, LANGUAGES, "give its ISO 639-1 code")
    return LANGUAGES[code]
