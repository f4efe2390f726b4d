"""How fast each part is, beside its peers: one table of medians.

python benchmark.py speed --out=F.json [--rows=heatmaps,decode] [--peer=torch,diffusers,hrnet:FOLDER]

Row `input` reads the data of the config, --config.data.root=COCO; row `oks` the file --annotations=FILE.
"""

from absl import flags
from ml_collections import config_flags

from benchmarks import end_to_end, micro, peers, report
from benchmarks.evaluation import evaluation
from dpose_jax.data.datasets import make_source

CONFIG = config_flags.DEFINE_config_file("config", "configs/coco_w32_256x192.py", "Whose data `input` reads, and W32.")
PEER = flags.DEFINE_list("peer", [], "Peers: torch, diffusers, hrnet:FOLDER.")
ANNOTATIONS = flags.DEFINE_string("annotations", None, "A COCO person_keypoints file for `oks`.")
OUT = flags.DEFINE_string("out", None, "The report, a JSON file; the table goes beside it as .md.", required=True)


def oks(wanted: peers.Peers, config) -> list[dict]:
    """The OKS evaluation beside those peers of it that are installed."""
    found = evaluation(ANNOTATIONS.value)
    return [
        {"work": "OKS evaluation", "unit": "s"} | {key: row[key] for key in ("who", "value", "low", "high")}
        for row in found
    ]


ROWS = {
    "heatmaps": micro.heatmaps,
    "decode": micro.decode,
    "sampler": micro.sampler,
    "oks": oks,
    "network": end_to_end.network,
    "input": end_to_end.inputs,
    "start": end_to_end.start,
    "memory": end_to_end.memory,
}
NAMES = flags.DEFINE_list("rows", list(ROWS), "Which rows to measure.")


def check(names: list[str], config) -> None:
    """Raises ValueError or an OSError for what a row lacks, before the rows in front of it have taken their minutes."""
    unknown = sorted(set(names) - set(ROWS))
    if unknown:
        raise ValueError(f"--rows={','.join(unknown)}: must be among {', '.join(ROWS)}")
    if "oks" in names and ANNOTATIONS.value is None:
        raise ValueError("--annotations is not given: row oks needs a COCO person_keypoints file")
    if "input" in names:
        make_source(config, "train", training=True)


def main() -> None:
    """Measures the chosen rows, prints the table and writes the report."""
    check(NAMES.value, CONFIG.value)
    wanted = peers.parse(PEER.value)
    environment = report.environment()
    table = [row for name in NAMES.value for row in ROWS[name](wanted, CONFIG.value)]
    report.write(OUT.value, table, environment=environment)
