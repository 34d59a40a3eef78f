"""BLEU, ROUGE-L, CIDEr and METEOR of captions, as for Scan2Cap and ScanQA.

BLEU (Papineni et al. 2002), ROUGE-L (Lin 2004) and CIDEr-D (arXiv 1411.5726) equal the COCO caption
evaluation of the benchmarks; words are separated by spaces. METEOR 1.5 needs pycocoevalcap (104 MB)
and Java; `meteor` is NLTK's without WordNet (a download), so it compares with itself only.
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
    """A caption as Scan2Cap's evaluation reads it: full stops and commas are words, sos and eos."""
    return " ".join(f"sos {caption.lower().replace('.', ' . ').replace(',', ' , ')} eos".split())


def caption_scores(captions: Sequence[str],
                   references: Sequence[Sequence[str]]) -> dict[str, float]:
    """bleu1 to bleu4, rouge_l, meteor in [0,1], cider in [0,10]; meteor15 where it can be run."""
    if not captions or len(captions) != len(references) or not all(references):
        raise ValueError(f"captions: got {len(captions)} sentences and {len(references)} sets of "
                         "references, expected one set of one or more for each, in the same order")
    words = [caption.split() for caption in captions]
    reference_words = [list(map(str.split, group)) for group in references]
    pairs = list(zip(words, reference_words, strict=True))
    out = {f"bleu{n}": v for n, v in zip(_ORDERS, bleu(words, reference_words), strict=True)}
    out |= {"rouge_l": float(np.mean([rouge_l(*pair) for pair in pairs])),
            "cider": float(np.mean(cider(words, reference_words))),
            "meteor": float(np.mean([meteor(*pair) for pair in pairs]))}
    official = meteor15(captions, references)
    return out if official is None else out | {"meteor15": official}


def bleu(captions: Sequence[Words], all_references: Sequence[Sequence[Words]]) -> list[float]:
    """BLEU-1 to BLEU-4 of the corpus; each caption's length is compared with the nearest one."""
    right, guessed, length, wanted = [0] * 4, [0] * 4, 0, 0
    for words, references in zip(captions, all_references, strict=True):
        length += len(words)
        wanted += min((abs(len(r) - len(words)), len(r)) for r in references)[1]
        for n in _ORDERS:
            most: Grams = Counter()
            for r in references:
                most |= _grams(r, n)
            right[n - 1] += sum((_grams(words, n) & most).values())
            guessed[n - 1] += max(len(words) - n + 1, 0)
    ratio = (length + _TINY) / (wanted + _SMALL)
    brevity = 1.0 if ratio >= 1 else exp(1 - 1 / ratio)
    product, out = 1.0, []
    for n, (k, m) in enumerate(zip(right, guessed, strict=True), 1):
        product *= (k + _TINY) / (m + _SMALL)
        out.append(product ** (1 / n) * brevity)
    return out


def rouge_l(words: Words, references: Sequence[Words]) -> float:
    """F-measure (beta 1.2) of the best precision and recall of the longest common subsequence."""
    common = [_longest_common_subsequence(words, r) for r in references]
    precision = max(c / len(words) for c in common) if words else 0.0
    recall = max(c / len(r) if r else 0.0 for c, r in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def cider(captions: Sequence[Words], all_references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of each caption; document frequencies come from the references themselves."""
    frequency: Grams = Counter()
    for references in all_references:
        frequency.update({gram for r in references for n in _ORDERS for gram in _grams(r, n)})
    documents = log(float(len(all_references)))
    out = []
    for words, references in zip(captions, all_references, strict=True):
        own = [_tf_idf(words, n, frequency, documents) for n in _ORDERS]
        total = 0.0
        for reference in references:
            excess = max(len(words), 1) - max(len(reference), 1)  # in pairs of words
            penalty = exp(-excess**2 / (2 * _SIGMA**2))
            other = [_tf_idf(reference, n, frequency, documents) for n in _ORDERS]
            total += penalty * sum(_similarity(a, b) for a, b in zip(own, other, strict=True)) / 4
        out.append(10 * total / len(references))
    return out


def meteor(words: Words, references: Sequence[Words]) -> float:
    """NLTK's METEOR on equal words and equal Porter stems."""
    from nltk.translate.meteor_score import meteor_score

    return float(meteor_score([list(r) for r in references], list(words), wordnet=_NoSynonyms()))


def meteor15(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float | None:
    """The benchmarks' METEOR 1.5 of the corpus; None without pycocoevalcap or Java."""
    if which("java") is None or find_spec("pycocoevalcap") is None:
        return None
    from pycocoevalcap.meteor.meteor import Meteor

    truth = {i: list(r) for i, r in enumerate(references)}
    return float(Meteor().compute_score(truth, {i: [s] for i, s in enumerate(captions)})[0])


class _NoSynonyms:
    def synsets(self, word: str) -> list:
        return []


def _grams(words: Words, n: int) -> Grams:
    return Counter(tuple(words[i:i + n]) for i in range(len(words) - n + 1))


def _tf_idf(words: Words, n: int, frequency: Grams,
            documents: float) -> dict[tuple[str, ...], float]:
    return {g: count * (documents - log(max(1.0, frequency[g])))
            for g, count in _grams(words, n).items()}


def _similarity(a: dict[tuple[str, ...], float], b: dict[tuple[str, ...], float]) -> float:
    """Cosine in which no n-gram of a counts for more than it does in b."""
    dot = sum(min(v, b.get(g, 0.0)) * b.get(g, 0.0) for g, v in a.items())
    norms = sqrt(sum(v**2 for v in a.values())) * sqrt(sum(v**2 for v in b.values()))
    return dot / norms if norms else dot


def _longest_common_subsequence(a: Words, b: Words) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]
