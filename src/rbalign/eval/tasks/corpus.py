"""Corpus BLEU and chrF++ by sacreBLEU, with intervals: statistics of segments are summed in each resample. No torch.

The statistics are those that sacreBLEU's own significance tests resample; its signature names version and tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rbalign.errors import UsageError
from rbalign.eval.stats import Bootstrap

TOKENIZERS = {"zh": "zh", "cmn": "zh", "yue": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
"""By the target language's first part; every other one has words between spaces: 13a."""
METRICS = ("bleu", "chrf++")


class CorpusMetric:
    """One metric of a whole test set, in sacreBLEU's 0 to 100."""

    def __init__(self, name: str, target: str = "") -> None:
        """name: of METRICS. target: the language translated into, as the data writes it ("de", "zh-CN", "cmn_hans_cn").

        UsageError where the target's tokenizer is not installed.
        """
        from sacrebleu.metrics import BLEU, CHRF

        self.name = name
        tokenizer = TOKENIZERS.get(target.replace("-", "_").split("_")[0].lower(), "13a")
        try:
            self._metric: Any = BLEU(tokenize=tokenizer) if name == "bleu" else CHRF(word_order=2)
            self._sentence: Any = BLEU(tokenize=tokenizer, effective_order=True) if name == "bleu" else self._metric
        except (RuntimeError, ImportError):  # sacreBLEU's own words for a missing extra
            extra = tokenizer.partition("-")[0]
            raise UsageError(f"{target} needs the tokenizer {tokenizer}", f"pip install 'sacrebleu[{extra}]'") from None

    def statistics(self, texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """(n, m) counts of each segment; they add up over a corpus."""
        found = self._metric._extract_corpus_statistics(list(texts), [list(references)])
        return np.array(found, dtype=np.float64).reshape(len(texts), -1)

    def signature(self) -> str:
        """Of the last texts, as sacreBLEU prints it."""
        return str(self._metric.get_signature())

    def of(self, sums: np.ndarray) -> float:
        """The score of summed statistics."""
        return _score(self._metric, sums)

    def sentence(self, counts: np.ndarray) -> float:
        """The score of one segment by its statistics (BLEU with effective order), to count better and worse ones; never
        a headline."""
        return _score(self._sentence, counts)

    def draws(self, boot: Bootstrap, statistics: np.ndarray) -> np.ndarray:
        """The score of the corpus and of each resample: (n, m) -> (1 + B,)."""
        return np.array([self.of(sums) for sums in boot.sums(statistics)])


def _score(metric: Any, counts: np.ndarray) -> float:
    return float(metric._compute_score_from_stats([int(count) for count in counts]).score)
