"""Annotation files for benchmarks that read no image; without flags, so that tests can import it."""

from dpose_jax.data.coco_dataset import AnnotatedSource
from dpose_jax.data.coco_format import format_counts
from dpose_jax.data.image_files import ImageStore
from dpose_jax.pose.joint_sets import JointSet


class _NoImages(ImageStore):
    """Of which none is read: every name will do."""

    def problem(self, name: str) -> None:
        return None


def read_ground_truth(file: str, joint_set: JointSet, *, use_area: bool = True) -> tuple[dict, dict[str, int]]:
    """The ground truth of a file as evaluation reads it, and the counters of its rules that are not 0.

    See `AnnotatedSource`: what is malformed is left out, whatever its share. Prints the counters if there are any.
    Raises FileNotFoundError, or ValueError that names the file if it is in another format, does not fit the joint set,
    or no person is left.
    """
    source = AnnotatedSource(
        file, _NoImages(""), joint_set, use_area=use_area, max_bad_share=float("inf"), training=False
    )
    counts = {rule: count for rule, count in source.report().items() if count}
    if shown := format_counts(counts):
        print(f"{file}: {counts['kept']} persons kept of {counts['records']} annotations; {shown}")
    return source.ground_truth(), counts
