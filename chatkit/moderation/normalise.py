"""Undoes what hides words from a scorer: invisible characters, look-alikes, digits for letters, spaced letters. Pure.

What comes out is read by scorers and lists and is never shown or stored. Every step is one pass over the text.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import cache

from chatkit.squeeze import ACCENTS, marks, squeezed

# Raised with whatever changes what scorers read of a text: scores made before are then no longer theirs.
READING = 4
# Letters of other scripts that are drawn like a Latin one, as NFKC leaves them.
_LOOKS = (
    "аa вb нh сc ԁd еe ѐe ёe ғf һh іi їi ɪi јj кk ӏl мm ոn оo рp ԛq гr яr ѕs тt ԝw хx уy ўy ѵv ԍg ьb "
    "αa βb γy δd εe ζz ηn ιi κk λl μu νv οo πn ρp σo ςc τt υu χx ωw ϲc ϳj "  # Greek
    "ցg հh օo սu քp յj զq ѡw ԏt "
    "ɑa ɐa ʙb ᴄc ᴅd ᴇe ǝe ɡg ɢg ʜh ɩi ᴊj ᴋk ʟl ᴍm ɴn ᴏo ᴘp ʀr ɹr ꜱs ᴛt ʇt ᴜu ᴠv ʌv ᴡw ʍw ʏy ᴢz "
    "ƒf ɦh ŀl ſs ꓲl ıi øo đd ħh łl ŧt ɓb ɗd "
    "ꭰd ꭱr ꭲt "
    "Ьb Ꮟb АA ВB СC ЕE ЁE НH ІI ЇI ЈJ КK МM ОO РP ЅS ТT ԜW ХX УY ΑA ΒB ΕE ΖZ ΗH ΙI ΚK ΜM ΝN ΟO ΡP ΤT ΥY ΧX "
)
_LATIN = {ord(pair[0]): pair[1] for pair in _LOOKS.split()}
# Drawn like Latin letters too, and letters of no script: these change wherever they stand.
_SIGNS = {
    **{0x1F1E6 + n: chr(97 + n) for n in range(26)},  # regional indicators
    **{0x1F150 + n: chr(97 + n) for n in range(26)},  # white on black
    **{0x1F170 + n: chr(97 + n) for n in range(26)},
    **{0xE0020 + n: chr(0x20 + n) for n in range(95)},  # tags: invisible, yet models read them as letters
    ord("’"): "'",
    ord("‘"): "'",
}
_WORD = re.compile(r"[^\W_]+")
# Runs of letters, digits and signs that stand for letters; a word where there is a letter among them.
_RUN = re.compile(r"(?<![\w@$#/.:\\-])[\w@$!|+€]+")
_LETTER = re.compile(r"[^\W\d_]")
_DIGITS = re.compile(r"(?<![\w.,])[013457]{1,4}(?![\w.,%])")
_LEET = str.maketrans("013457@$!|+€", "oieastasilte")
_LEET_CHARACTERS = frozenset("013457@$!|+€")
# Short or marked words that are meant where their digits stand for letters; any other stays, as "mp3" and "@user" do.
_MEANT_WORDS = (
    "how who you to of or so do go no on not for now get the ass gun sex die kid me be we he she it is in if at as has "
    "his him her hit shit suck anal bomb kill rape nazi porn nude slut ties tits hoe fat fag gas pot acid one stab "
    "steal tell give make into your does said hate hell all out hack virus drug drugs with this that them they these "
    "those here there"
)
_MEANT = frozenset(_MEANT_WORDS.split())
# Single letters with one sign between each two of them: at least four, since initials have up to three.
_SPACED = re.compile(r"(?<![^\W_])[^\W\d_](?:([ .\-_*·•|/,])[^\W\d_])(?:\1[^\W\d_]){2,}(?![^\W_])")
# In a text with one of those, words of two and three letters are spaced as well; they stand behind a wider gap.
_SPACED_SHORT = re.compile(r"(?<=[ \t]{2})[^\W\d_] [^\W\d_](?: [^\W\d_])?(?![^\W_])")
_GAPS = re.compile(r"[ \t]{2,}")
# More marks than this on one letter are there to break words up.
_ACCENTS = re.compile(rf"([^\W\d_])[{ACCENTS}]+")


def normalised(text: str) -> str:
    """Return `text` as a reader would understand it, edges stripped.

    In NFKC, without invisible characters, accents on Latin letters and marks heaped on others; with text that a bidi
    override turns round in the order in which it is seen; look-alikes of Latin letters as those in words that have
    Latin letters or stand among them; digits and signs that stand for letters as letters; spaced letters joined. Text
    in another script stays in it. At most as long as NFKC makes it, and squeezed.
    """
    text = squeezed(text)
    if not text.isascii():
        text = _visible(text)
        text = _WORD.sub(_in_latin(text), text)
    text = _joined(text)
    return _spelt(text).strip()


def _visible(text: str) -> str:
    """Return NFKC of what is seen, without accents on Latin letters."""
    text = unicodedata.normalize("NFKC", text.translate(_SIGNS))
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    text = unicodedata.normalize("NFKC", text.translate(_SIGNS))
    text = _ACCENTS.sub(r"\1", _marked_latin().sub(r"\1", text))
    if text.isascii():
        return text
    return "".join(_base(c) for c in text)


@cache
def _marked_latin() -> re.Pattern[str]:
    """Return what finds Latin letters with marks on them, of any script: readers see the letter."""
    return re.compile(rf"([A-Za-z\u00c0-\u024f\u1e00-\u1eff])[{marks()}]+")


def _base(character: str) -> str:
    """Return a Latin letter without its accent, any other character as it is."""
    if "\u00c0" <= character <= "\u024f" or "\u1e00" <= character <= "\u1eff":
        first = unicodedata.normalize("NFD", character)[0]
        return first if first.isascii() else character
    return character


def looks_like(character: str) -> str:
    """Return the small Latin letter that a character is drawn like or stands for, else itself; one character always."""
    found = _SIGNS.get(ord(character)) or _base(character).translate(_LATIN).translate(_LEET).lower()
    return found if len(found) == 1 else character


def _in_latin(text: str) -> Callable[[re.Match[str]], str]:
    """Return what a word becomes: Latin where it has Latin letters, or looks Latin throughout in a Latin text."""
    words = _WORD.findall(text)
    latin = [word for word in words if _has_latin(word)]
    # A word of two scripts is a trick, and where there is one a third of Latin words is enough for a Latin text.
    tricked = any(_has_latin(word) and word.translate(_LATIN).isascii() and not word.isascii() for word in latin)
    among = len(latin) * (3 if tricked else 2) > len(words)

    def replaced(match: re.Match[str]) -> str:
        word = match.group()
        if word.isascii():
            return word
        looks = word.translate(_LATIN)
        if looks.isascii():
            return looks if among or _has_latin(word) else word
        return looks if _has_latin(word) else word

    return replaced


def _has_latin(word: str) -> bool:
    return any(c.isascii() and c.isalpha() for c in word)


def _joined(text: str) -> str:
    """Return `text` with spaced letters joined to words; wider gaps between them stay gaps."""
    found = _SPACED.sub(lambda match: match.group()[::2], text)
    if found == text:
        return text
    return _GAPS.sub(" ", _SPACED_SHORT.sub(lambda match: match.group()[::2], found))


def _spelt(text: str) -> str:
    """Return `text` with digits and signs as letters, in words where they stand for them."""
    if _LEET_CHARACTERS.isdisjoint(text):
        return text
    found = [match for match in _RUN.finditer(text) if _LETTER.search(match.group()) and not _is_address(text, match)]
    often = sum(_stands_inside(match.group()) and not match.group().isupper() for match in found) >= 2
    mixed = sum(not match.group().isalpha() and not _LEET_CHARACTERS.isdisjoint(match.group()) for match in found)
    all_over = mixed >= 3 and 5 * mixed >= 2 * len(found)

    def replaced(match: re.Match[str]) -> str:
        word = match.group()
        if word.isalpha() or _LEET_CHARACTERS.isdisjoint(word) or _is_address(text, match) or not _LETTER.search(word):
            return word
        core = word.rstrip("!|+")
        spelt = core.translate(_LEET)
        if not spelt.isalpha():
            return word
        if (
            spelt.lower() in _MEANT
            or all_over
            or (_is_word(core) if often else _stands_inside(core) and not core.isupper())
        ):
            return spelt + word[len(core) :]
        return word

    text = _RUN.sub(replaced, text)
    return _DIGITS.sub(_meant, text) if all_over else text


def _meant(match: re.Match[str]) -> str:
    spelt = match.group().translate(_LEET)
    return spelt if spelt in _MEANT or spelt in ("a", "i") else match.group()


def _is_address(text: str, match: re.Match[str]) -> bool:
    return "@" in match.group() and text[match.end() : match.end() + 1] == "."


def _stands_inside(word: str) -> bool:
    """Whether a longer word has a digit or sign between letters, and mostly letters: "b0mb", not "mp3" or "covid19"."""
    letters = sum(c.isalpha() for c in word)
    if len(word) < 4 or letters * 2 < len(word) or letters < 2:
        return False
    inner = word.strip("0123456789@$!|+€")
    return inner != "" and not inner.isalpha() and not re.search(r"\d{2}", re.sub(r"(\d)\1", r"\1", inner))


def _is_word(word: str) -> bool:
    """Whether a word of a text full of such spelling may be one: it has letters, and no more digits than those."""
    letters = sum(c.isalpha() for c in word)
    return letters > 0 and 2 * letters >= len(word)
