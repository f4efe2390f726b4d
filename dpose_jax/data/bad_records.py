"""The count of records that cannot be used, and the limit at which a run stops."""

import numpy as np
from absl import logging

from dpose_jax.data.coco_format import MALFORMED
from dpose_jax.data.sample import Source


class BadRecords:
    """Counts unreadable records, beside the malformed that the source left out; a resumed run counts them anew."""

    def __init__(self, source: Source, max_share: float):
        """`max_share` of the source's records may be malformed or unreadable."""
        self._source, self._max_share = source, max_share
        self._seen: set[int] = set()
        report = source.report()
        self._malformed = sum(report.get(rule, 0) for rule in MALFORMED)

    def __len__(self) -> int:
        return self._malformed + len(self._seen)

    def add(self, bad_index: np.ndarray) -> None:
        """Takes a batch's `bad_index`, and reports each new record; raises ValueError beyond the allowed share."""
        for index in {int(i) for i in bad_index if i >= 0} - self._seen:
            self._seen.add(index)
            person = self._source[index]
            logging.warning("unreadable record left out: %s (id %d)", person.file, person.annotation_id)
        total = self._malformed + len(self._source)
        if self._seen and len(self) > self._max_share * total:
            raise ValueError(
                f"{self._malformed} of {total} records are malformed and {len(self._seen)} unreadable, more than "
                f"data.max_bad_share={self._max_share}; one of them: {self._source[max(self._seen)].file}"
            )
