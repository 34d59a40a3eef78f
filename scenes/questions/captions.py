"""How near a sentence is to what people wrote: BLEU, ROUGE-L, CIDEr and METEOR, as for Scan2Cap and
ScanQA.

BLEU (Papineni et al. 2002), ROUGE-L (Lin 2004) and CIDEr-D (arXiv 1411.5726) follow the COCO
caption evaluation that the benchmarks use, to the digit; words are what spaces separate, as there.
METEOR 1.5, which they use, is a Java program with tables of paraphrases: it is run where
pycocoevalcap (104 MB) and Java are installed. `meteor` is NLTK's on equal words and equal stems,
without WordNet, which would be a download: it compares with itself only.
"""
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from math import exp, log, sqrt
from shutil import which

import numpy as np

Words = list[str]
Grams = Counter[tuple[str, ...]]
_ORDERS = range(1, 5)
_SIGMA = 6.0      # CIDEr-D: of the length penalty, words
_BETA = 1.2       # ROUGE-L: weight of recall
_SMALL, _TINY = 1e-9, 1e-15


def scan2cap_words(caption: str) -> str:
    """A caption as Scan2Cap's evaluation reads it: full stops and commas as words, between sos and
    eos."""
    return " ".join(f"sos {caption.lower().replace('.', ' . ').replace(',', ' , ')} eos".split())


def caption_scores(said: Sequence[str], meant: Sequence[Sequence[str]]) -> dict[str, float]:
    """Each sentence said against those meant: bleu1 to bleu4, rouge_l and meteor in [0,1], cider in
    [0,10]; meteor15 too where it can be run.

    Raises ValueError if there is no sentence, the numbers differ, or one has nothing to be compared
    with.
    """
    if not said or len(said) != len(meant) or not all(meant):
        raise ValueError(
            f"captions: got {len(said)} sentences and {len(meant)} sets of references, expected "
            "one set of one or more for each; check that both come from the same questions")
    official = meteor15(said, meant)
    heard, references = [s.split() for s in said], [[r.split() for r in rs] for rs in meant]
    return {
        **{f"bleu{n}": v
           for n, v in zip(_ORDERS, bleu(heard, references), strict=True)}, "rouge_l": float(
            np.mean([rouge_l(h, rs) for h, rs in zip(heard, references, strict=True)])),
        "cider": float(np.mean(cider(heard, references))),
        "meteor": float(np.mean([meteor(h, rs) for h, rs in zip(heard, references, strict=True)])),
        **({} if official is None else {"meteor15": official})
    }


def bleu(said: Sequence[Words], meant: Sequence[Sequence[Words]]) -> list[float]:
    """BLEU-1 to BLEU-4 of the whole corpus; each sentence counts the reference nearest in
    length."""
    right, guessed, length, wanted = [0] * 4, [0] * 4, 0, 0
    for words, references in zip(said, meant, strict=True):
        length += len(words)
        wanted += min((abs(len(r) - len(words)), len(r)) for r in references)[1]
        for n in _ORDERS:
            most: Grams = Counter()
            for r in references:
                most |= _grams(r, n)
            mine = _grams(words, n)
            right[n - 1] += sum((mine & most).values())
            guessed[n - 1] += max(len(words) - n + 1, 0)
    ratio = (length + _TINY) / (wanted + _SMALL)
    brevity = 1.0 if ratio >= 1 else exp(1 - 1 / ratio)
    product, out = 1.0, []
    for n, (k, m) in enumerate(zip(right, guessed, strict=True), 1):
        product *= (k + _TINY) / (m + _SMALL)
        out.append(product ** (1 / n) * brevity)
    return out


def rouge_l(words: Words, references: Sequence[Words]) -> float:
    """F-measure, recall weighing 1.2, of the best precision and best recall of the longest common
    subsequence."""
    common = [_subsequence(words, r) for r in references]
    precision = max(c / len(words) for c in common) if words else 0.0
    recall = max(c / len(r) if r else 0.0 for c, r in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def cider(said: Sequence[Words], meant: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of each sentence; how rare an n-gram is comes from the references themselves."""
    seen_in: Grams = Counter()
    for references in meant:
        seen_in.update({gram for r in references for n in _ORDERS for gram in _grams(r, n)})
    everything = log(float(len(meant)))
    out = []
    for words, references in zip(said, meant, strict=True):
        mine = [_weighed(words, n, seen_in, everything) for n in _ORDERS]
        total = 0.0
        for reference in references:
            penalty = exp(-(_pairs(words) - _pairs(reference)) ** 2 / (2 * _SIGMA**2))
            theirs = [_weighed(reference, n, seen_in, everything) for n in _ORDERS]
            total += penalty * sum(_similarity(a, b) for a, b in zip(mine, theirs, strict=True)) / 4
        out.append(10 * total / len(references))
    return out


def meteor(words: Words, references: Sequence[Words]) -> float:
    """NLTK's METEOR on equal words and equal Porter stems."""
    from nltk.translate.meteor_score import meteor_score

    return float(meteor_score([list(r) for r in references], list(words), wordnet=_NoSynonyms()))


def meteor15(said: Sequence[str], meant: Sequence[Sequence[str]]) -> float | None:
    """METEOR 1.5 of the corpus, the benchmarks' own; None where pycocoevalcap or Java is not
    installed."""
    if which("java") is None or find_spec("pycocoevalcap") is None:
        return None
    from pycocoevalcap.meteor.meteor import Meteor

    references = {i: list(r) for i, r in enumerate(meant)}
    return float(Meteor().compute_score(references, {i: [s] for i, s in enumerate(said)})[0])


class _NoSynonyms:
    def synsets(self, word: str) -> list:
        return []


def _grams(words: Words, n: int) -> Grams:
    return Counter(tuple(words[i:i + n]) for i in range(len(words) - n + 1))


def _pairs(words: Words) -> int:
    return max(len(words) - 1, 0)


def _weighed(words: Words, n: int, seen_in: Grams,
             everything: float) -> dict[tuple[str, ...], float]:
    return {
        g: count * (everything - log(max(1.0, seen_in[g])))
        for g, count in _grams(words, n).items()
    }


def _similarity(mine: dict[tuple[str, ...], float], theirs: dict[tuple[str, ...], float]) -> float:
    """Cosine in which no n-gram of mine counts for more than it does in theirs."""
    dot = sum(min(v, theirs.get(g, 0.0)) * theirs.get(g, 0.0) for g, v in mine.items())
    norms = sqrt(sum(v**2 for v in mine.values())) * sqrt(sum(v**2 for v in theirs.values()))
    return dot / norms if norms else dot


def _subsequence(a: Words, b: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]
