"""The recipe: types, ranges and names, from Python, from files of configs/ and from the command line."""

import dataclasses

import pytest
from commands import ROOT, command

from configs import base
from dpose_jax.recipe import Model, Recipe, Synthetic


def test_the_defaults_pass_through_ml_collections_unchanged():
    assert Recipe.from_config(base.get_config()) == Recipe()


def test_a_recipe_is_frozen_and_override_makes_another():
    recipe = Recipe()
    changed = recipe.override({"model.width": 16, "data.synthetic.seed": 3, "sampler.steps": [2, 1], "optim.ema": 0})
    assert (changed.model.width, changed.data.synthetic.seed, changed.sampler.steps) == (16, 3, (2, 1))
    assert changed.optim.ema == 0.0 and type(changed.optim.ema) is float
    assert recipe == Recipe() and Recipe.read(dataclasses.asdict(changed)) == changed
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.model.width = 8


WRONG = [
    ({"sampler.steps": ("1",)}, "sampler.steps=('1',): element 0: must be an integer"),
    ({"sampler.steps": (1.5,)}, "sampler.steps=(1.5,): element 0: must be an integer"),
    ({"sampler.steps": (1, True)}, "sampler.steps=(1, True): element 1: must be an integer"),
    ({"sampler.steps": 1}, "sampler.steps=1: must be a tuple"),
    ({"sampler.steps": ()}, "sampler.steps=(): must be one or more distinct numbers, each at least 1"),
    ({"sampler.steps": (1, 1)}, "sampler.steps=(1, 1): must be one or more distinct numbers, each at least 1"),
    ({"sampler.steps": (0,)}, "sampler.steps=(0,): must be one or more distinct numbers, each at least 1"),
    ({"sampler.steps": (301,)}, "sampler.steps=(301,): must not exceed sampler.t_start=300"),
    ({"sampler.t_start": 1001}, "sampler.t_start=1001: must not exceed T = 1000"),
    (
        {"sampler.start": "random", "sampler.update_rule": "ddim"},
        "sampler.t_start=300: must be T = 1000 for ddim with sampler.start='random'",
    ),
    ({"sampler.eta": 2.0}, "sampler.eta=2.0: must lie in [0, 1]"),
    ({"sampler.update_rule": "ddpm"}, "sampler.update_rule='ddpm': must be one of ('direct', 'ddim')"),
    ({"diffusion.t_range": (1, "300")}, "diffusion.t_range=(1, '300'): element 1: must be an integer"),
    ({"diffusion.t_range": (1, 2, 3)}, "diffusion.t_range=(1, 2, 3): must be 2 numbers"),
    ({"diffusion.t_range": (0, 10)}, "diffusion.t_range=(0, 10): must be 1 <= low <= high <= T = 1000"),
    ({"diffusion.t_range": (5, 4)}, "diffusion.t_range=(5, 4): must be 1 <= low <= high <= T = 1000"),
    ({"diffusion.own_share": -0.1}, "diffusion.own_share=-0.1: must lie in [0, 1]"),
    ({"diffusion.zeta": 0.0}, "diffusion.zeta=0.0: must be positive"),
    ({"diffusion.every": 0}, "diffusion.every=0: must be at least 1"),
    ({"model.decoder": "lite"}, "model.decoder='lite': must be one of ('unet', 'light')"),
    ({"model.upsampling": "nearest"}, "model.upsampling='nearest': must be one of ('bilinear', 'subpixel')"),
    (
        {"model.upsampling": "subpixel", "stride": 8},
        "model.upsampling='subpixel': must be 'bilinear' with stride=8, which is above 4",
    ),
    ({"input_size": (64.0, 64.0)}, "input_size=(64.0, 64.0): element 0: must be an integer"),
    (
        {"input_size": (60, 64)},
        "input_size=(60, 64): must be (height, width), positive multiples of 32 each, at most 4096",
    ),
    ({"input_size": (2**20, 64)}, "input_size=(1048576, 64): must be (height, width), positive multiples of 32"),
    ({"model.decoder_blocks": 10**6}, "model.decoder_blocks=1000000: must lie in [1, 64]"),
    ({"diffusion.timesteps": 2**31}, "diffusion.timesteps=2147483648: must lie in [1, 100000]"),
    ({"input_size": "x" * 5000}, "input_size='xxxxxxxxxx"),
    ({"stride": 3}, "stride=3: must be one of (4, 1, 2, 8)"),
    ({"optim.decay_at": (0.5, "x")}, "optim.decay_at=(0.5, 'x'): element 1: must be a number"),
    ({"optim.decay_at": (170, 200)}, "optim.decay_at=(170.0, 200.0): must be shares of the run, each in (0, 1)"),
    ({"optim.learning_rate": 0.0}, "optim.learning_rate=0.0: must be positive"),
    ({"optim.learning_rate": float("nan")}, "optim.learning_rate=nan: must be finite"),
    ({"optim.schedule": "linear"}, "optim.schedule='linear': must be one of ('step', 'cosine')"),
    ({"optim.warmup_steps": 4, "train.steps": 4}, "optim.warmup_steps=4: must lie in [0, train.steps=4)"),
    ({"optim.warmup_steps": -1}, "optim.warmup_steps=-1: must not be negative"),
    ({"optim.base_batch": -1}, "optim.base_batch=-1: must not be negative"),
    ({"optim.clip_norm": -1.0}, "optim.clip_norm=-1.0: must not be negative"),
    ({"optim.weight_decay": -1.0}, "optim.weight_decay=-1.0: must not be negative"),
    ({"optim.freeze_backbone_steps": -1}, "optim.freeze_backbone_steps=-1: must not be negative"),
    ({"optim.ema": 1.0}, "optim.ema=1.0: must lie in [0, 1)"),
    ({"optim.ema": -0.1}, "optim.ema=-0.1: must lie in [0, 1)"),
    ({"seed": 2**32}, "seed=4294967296: must lie in [0, 2**32)"),
    ({"seed": -1}, "seed=-1: must lie in [0, 2**32)"),
    ({"sampler.seed": 2**32}, "sampler.seed=4294967296: must lie in [0, 2**32)"),
    ({"data.synthetic.seed": 2**40}, "data.synthetic.seed=1099511627776: must lie in [0, 2**32)"),
    ({"train.steps": 2**60}, "train.steps=1152921504606846976: must be finite and at most 2**53"),
    ({"train.steps": True}, "train.steps=True: must be an integer"),
    ({"train.fsdp": 1}, "train.fsdp=1: must be True or False"),
    ({"data.root": 3}, "data.root=3: must be a string"),
    ({"data.source": "web"}, "data.source='web': must be one of ('folder', 'full', 'crops', 'synthetic', 'rendered')"),
    ({"model.width": "wide"}, "model.width='wide': must be an integer"),
    ({"model.head_dim": (16,)}, "model.head_dim=(16,): must be 2 numbers"),
    ({"model.head_dim": (32, 16)}, "model.head_dim=(32, 16): must be 1 <= low <= high"),
    (
        {"model.time_embedding": True, "model.decoder_channels": 7},
        "model.decoder_channels=7: must be even with model.time_embedding",
    ),
    ({"codec.blur": 4}, "codec.blur=4: must be odd"),
    ({"eval.nms": 0.0}, "eval.nms=0.0: must lie in (0, 1]; 1 turns it off"),
    ({"eval.split": "exam"}, "eval.split='exam': must be one of ('val', 'train')"),
    ({"joint_set": "cocoa"}, "joint_set='cocoa': must be one of ['aic', 'coco', 'crowdpose']"),
    ({"train.step": 10}, "train.step: unknown field; did you mean 'train.steps'?"),
    ({"augmnet.flip": 0}, "augmnet: unknown field; did you mean 'augment'?"),
    ({"model.backbone.width": 1}, "model.backbone='w32': must be a section"),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=[str(values)[:60] for values, _ in WRONG])
def test_what_breaks_a_rule_is_named_in_one_line(values, message):
    with pytest.raises(ValueError) as caught:
        Recipe().override(values)
    text = str(caught.value)
    assert text.startswith(message) and "\n" not in text and len(text) < 300


@pytest.mark.parametrize("value", [5, [1], None, "tiny"])
def test_a_section_is_a_mapping_or_itself(value):
    with pytest.raises(ValueError, match=r"model=.*: must be a section with the fields backbone, width, "):
        Recipe(model=value)
    assert Recipe(model={"width": 8}).model == Model(width=8)
    with pytest.raises(ValueError, match=r"data\.synthetic\.train_image: unknown .* 'data\.synthetic\.train_images'"):
        Synthetic.read({"train_image": 1})


FILES = {
    "c.train.step = 10": "unknown field; did you mean 'train.steps'?",
    "c.augmnet = 1": "augmnet: unknown field; did you mean 'augment'?",
    "c.augmnet.flip = 0": """line 5: unknown config field 'augmnet'; did you mean "augment" instead of "augmnet"?""",
    "c.train.steps = 'many'": "line 5: TypeError: Could not override field 'steps'",
    "c.sampler.steps = ('1',)": "sampler.steps=('1',): element 0: must be an integer",
    "c.optim.ema = 1.0": "optim.ema=1.0: must lie in [0, 1)",
    "c = None": "get_config() must return a ConfigDict",
    "c.train.steps = (": "line 5: '(' was never closed",
    "1 / 0": "line 5: ZeroDivisionError: division by zero",
}


def recipe_file(folder, line):
    path = folder / "own.py"
    path.write_text(
        f"from configs import base\n\ndef get_config():\n    c = base.get_config()\n    {line}\n    return c\n"
    )
    return path


@pytest.mark.parametrize("line", FILES)
def test_an_error_of_a_recipe_file_is_one_line_with_the_file(line, tmp_path):
    from dpose_jax.runtime.recipe_file import _RecipeFile

    path = recipe_file(tmp_path, line)
    with pytest.raises(ValueError) as caught:
        _RecipeFile().parse(str(path))
    assert FILES[line] in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_without_get_config_is_no_recipe(tmp_path):
    from dpose_jax.runtime.recipe_file import _RecipeFile

    (tmp_path / "own.py").write_text("x = 1\n")
    for path, message in ((tmp_path / "own.py", "defines no get_config"), (tmp_path / "none.py", "no such file")):
        with pytest.raises(ValueError, match=message):
            _RecipeFile().parse(str(path))


@pytest.mark.parametrize(
    ("line", "arguments", "message"),
    [
        ("c.train.step = 10", [], "flag --config=FILE: train.step: unknown field; did you mean 'train.steps'?"),
        ("pass", ["--config.sampler.steps=('1',)"], "sampler.steps=('1',): element 0: must be an integer"),
        ("pass", ["--config.train.steps=many"], "flag --config.train.steps=many: invalid literal for int()"),
        ("pass", ["--workdir="], "--workdir='': must name a file, folder or bucket"),
    ],
)
def test_the_command_line_gives_the_same_line(line, arguments, message, tmp_path):
    path = recipe_file(tmp_path, line)
    done = command("train.py", f"--config={path}", f"--workdir={tmp_path / 'run'}", *arguments)
    assert done.returncode == 1 and not (tmp_path / "run").exists()
    assert done.stderr.startswith(f"error: {message.replace('FILE', str(path))}"), done.stderr
    assert len(done.stderr.splitlines()) <= 2 and "Traceback" not in done.stderr


def test_the_summary_gives_the_same_line_too(tmp_path):
    path = recipe_file(tmp_path, "c.train.steps = 1 / 0")
    done = command("dpose_jax.models.summary", f"--config={path}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith(f"error: flag --config={path}: line 5: ZeroDivisionError"), done.stderr


def test_a_recipe_that_is_not_there_is_named_with_the_nearest():
    for given in ("configs/coco_tinny.py", "coco_tinny.py"):
        done = command("train.py", f"--config={given}", "--workdir=none")
        assert done.stderr == f"error: flag --config={given}: no such file in 'configs'; did you mean 'coco_tiny.py'?\n"


def test_every_program_reads_recipe_files_by_one_rule():
    folders = (ROOT / name for name in ("dpose_jax", "benchmarks"))
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    assert [path.name for path in files if "DEFINE_config" in path.read_text()] == ["recipe_file.py"]
