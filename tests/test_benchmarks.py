import json
import pathlib
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from dpose_jax import benchmarks
from dpose_jax.benchmarks import report

ROOT = pathlib.Path(__file__).parents[1]


def command(*arguments):
    return subprocess.run([sys.executable, "benchmark.py", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_list_of_subcommands():
    done = command()
    assert done.returncode == 0, done.stderr
    for name, line in benchmarks.subcommands().items():
        assert len(line) > 20 and any(row.split() == [name, *line.split()] for row in done.stdout.splitlines())


def test_unknown_subcommand():
    done = command("sped")
    assert done.returncode == 1
    assert done.stderr.startswith("error: unknown subcommand 'sped': must be one of ") and "speed" in done.stderr


def test_subcommand_without_its_package(monkeypatch, tmp_path):
    """The list still shows it, and using it names what is missing."""
    (tmp_path / "broken.py").write_text('"""Needs a package."""\nimport no_such_package\n\n\ndef main():\n    pass\n')
    monkeypatch.setattr(benchmarks, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(benchmarks, "__path__", [str(tmp_path)])
    assert benchmarks.subcommands() == {"broken": "Needs a package."}
    with pytest.raises(SystemExit, match="broken needs the package 'no_such_package'"):
        benchmarks.load("broken")


def test_measure_takes_turns_and_gives_seconds():
    order = []

    def call(name, seconds):
        order.append(name)
        time.sleep(seconds)

    found = report.measure({"a": lambda: call("a", 0.002), "b": lambda: call("b", 0.02)}, seconds=0.05, least=4)
    assert order == ["a", "b"] * (len(order) // 2)
    assert found["a"].calls == found["b"].calls == len(order) // 2 - 1 >= 4
    assert 0.002 <= found["a"].low <= found["a"].median <= found["a"].high
    assert 0.02 <= found["b"].median < 0.2


def test_compiled_runs_and_says_how_long_it_took():
    run, seconds = report.compiled(lambda x, n: x * n, jnp.arange(3.0), 2, static_argnums=1)
    np.testing.assert_array_equal(run(jnp.arange(3.0)), [0, 2, 4])
    assert seconds > 0


def test_report_is_json_and_a_table(tmp_path, capsys):
    rows = [{"work": "a", "value": np.float32(0.5)}, {"work": "b", "value": 12345.6, "note": "x"}]
    environment = report.environment()
    report.write(str(tmp_path / "new" / "r.json"), rows, environment=environment, protocol={"batch": 4})
    stored = json.loads((tmp_path / "new" / "r.json").read_text())
    assert stored == {"environment": environment, "protocol": {"batch": 4}, "rows": rows}
    assert environment["cores"] >= 1 and environment["versions"]["jax"] and environment["load"] >= 0
    lines = (tmp_path / "new" / "r.md").read_text().splitlines()
    assert lines == capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == ["work", "value", "note"]
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == ["b", "12,346", "x"]
    assert len({len(line) for line in lines}) == 1
