"""Captions -> the words that are compared: the tokens of the Penn Treebank in lower case, without punctuation.

The COCO caption evaluation cuts captions with a Java program; these are its rules as far as captions need them. Like
there, brackets stay as words (``-lrb-``).
"""

from __future__ import annotations

import re

# Tokens that are left out. "-lrb-" and its like are not among them: the original's list has capitals.
_DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_CHANGED = str.maketrans(
    {
        "\n": " ", "\r": " ", "’": "'", "‘": "'", "“": '"', "”": '"', "–": "--", "—": "--", "…": "...",
        "½": "1/2", "¼": "1/4", "¾": "3/4", "€": "$", "£": "#",
    }
)  # fmt: skip
# Words that keep their period wherever they stand.
_ABBREVIATIONS = (
    "mr mrs ms messrs dr drs prof profs st ave blvd rd ct sq jr sr bros co corp inc ltd plc vs etc cf al est ft "
    "mo rev hon pres gov gen sen rep reps sens govs col lt maj capt cmdr adm sgt pvt cpl pfc supt insp det asst "
    "assoc assn dept univ mt bldg ste jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu "
    "thurs fri calif conn fla ga ind kan ky md mich minn mont neb nev okla penn tenn va vt wis wyo ala ariz colo "
    "dak ph esq atty attys rt cie natl intl tel ext elec treas wm jos alex lieut comdr ph.d mlle mme adj adv "
    "invt"
)
# The same, where they are written with a capital.
_STATES = "ill la mass miss ore pa tex wash ark del"
# The same, before a number.
_BEFORE_NUMBERS = "ca no nos fig figs pp art op"
# Words that begin a sentence: a single letter before them has no period of its own.
_BEGINNERS = (
    "A About According Additionally After An As At But Earlier He Her Here If In It Last Many More Mr Ms Now One "
    "Other Our She Since So Some Such That The Their Then There They This We When While What Yet You However"
)
_LETTER = r"[^\W\d_]"
_PART = rf"(?:{_LETTER}|\d)+"
_NOT = r"n['`]t(?!\w)"


def _either(words: str) -> str:
    return "|".join(re.escape(word) for word in sorted(words.split(), key=len, reverse=True))


def _capitals(words: str) -> str:
    return "|".join(f"{word[0].upper()}(?i:{word[1:]})" for word in words.split())


# The first of these that fits is the next token; what none fits is left out (emoji).
_TOKEN = re.compile(
    "|".join(
        (
            # Tags, brackets that are written out, smileys.
            r"</?[A-Za-z][^<>]*>",
            r"-[LRlr][RSCrsc][Bb]-",
            r"[:;=]-?[()]",
            # Addresses, names with @ and #.
            r"https?://[^\s<>\"'|(){}]*[\w/]",
            rf"(?:www\.)?(?:{_PART}[-.])*{_PART}\.(?:com|net|org|edu|gov)(?![\w])(?:/[\w/.-]*\w)?",
            r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*",
            r"@[A-Za-z_]\w*|[#][A-Za-z]\w*",
            # Words that are parted: can not, gon na, 't is.
            r"(?i:can(?=not\b)|gon(?=na\b)|wan(?=na\b)|got(?=ta\b)|lem(?=me\b)|gim(?=me\b))",
            r"(?i:(?<=can)not\b|(?<=gon)na\b|(?<=wan)na\b|(?<=got)ta\b|(?<=lem)me\b|(?<=gim)me\b)",
            r"(?i:(?<!\w)['](?:t(?=is\b|was\b)|em\b|till?\b|cause\b))",
            r"['][2-9]0s",
            # A contraction parts its word: do n't, it 's.
            rf"(?i:{_NOT})",
            rf"(?i:{_LETTER}+(?={_NOT}))",
            r"(?i:['](?:s|m|d|re|ve|ll)(?!\w))",
            # Words that keep an apostrophe.
            r"(?i:(?<!\w)(?:[dol]['](?=\w)[\w]+|s'mores|ma'am|c'mon|j'(?=\w)|n?e'er|qu'il|hawai'i|somethin'|ol'))",
            r"(?i:[']n['](?!\w)|(?<=\w)[']n['](?=\w)|[']n(?=\s|$|[']))",
            r"(?i:y['](?=\w))",
            # U.S., abbreviations, single letters: with their period.
            rf"(?i:{_LETTER}(?:\.{_LETTER})+\.)(?!\w)",
            rf"(?i:(?<!\w)(?:{_either(_ABBREVIATIONS)})\.)(?!{_LETTER})",
            rf"(?<!\w)(?:[Mm]fg|{_capitals(_STATES)})\.(?!{_LETTER})",
            rf"(?i:(?<!\w)(?:{_either(_BEFORE_NUMBERS)})\.)(?=\s*\d)",
            rf"(?<!\w){_LETTER}\.(?!{_LETTER})(?!\s+(?:{_either(_BEGINNERS)})\b)",
            # Sentences without a blank between them stay one word, AT&T is one.
            rf"{_LETTER}+(?:[.?!]{_LETTER}+)+(?!{_LETTER})",
            r"[A-Za-z]+&[A-Z]+(?!\w)|US[$]",
            # Numbers, before words such as 5-year-old and 1990s.
            r"(?<!\w)\d+:\d+(?=[ap]m\b)",
            rf"(?:(?<![\w.])-|[+])?(?:\d+(?:[.,:]\d+)*|(?<!\w)\.\d+)(?:[-/]\d+(?:[.,]\d+)*)*(?!\w)(?:-{_LETTER}\w*)*",
            rf"{_PART}(?:[-/_]{_PART})*(?:\+\+|[#](?!\w))?",
            # Runs of signs, then any other sign.
            r"\.\.\.+|\.(?: \.){2,}",
            r"--+|[!?]+|\*+|_+|[#]+|``|''",
            r"[^\s\U00010000-\U0010ffff]",
        )
    )
)


def caption_words(caption: str) -> list[str]:
    """The words of a caption in lower case, without punctuation; brackets as ``-lrb-`` and ``-rrb-``."""
    text = caption.replace("&amp;", "&").translate(_CHANGED)
    tokens = (_written(found[0]) for found in _TOKEN.finditer(text))
    return [token for token in tokens if token not in _DROPPED]


def _written(token: str) -> str:
    if token.startswith(("--", ". .", "...")):
        return "--" if token[0] == "-" else "..."
    if token == "¢":
        return "cents"
    if token == '"':
        return "''"
    if token in _BRACKETS:
        return _BRACKETS[token]
    # Smileys are words with brackets; a blank in a token would part it.
    return "".join(_BRACKETS.get(sign, sign) for sign in token.lower()).replace(" ", "\u00a0")
