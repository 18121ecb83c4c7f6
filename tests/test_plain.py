"""What is taken away as weights loads in plain timm and says what our model says, for every method."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rift import catalog, example, plain, service, trained
from rift.config import Choice, Experiment, Training
from rift.dataset import store
from rift.errors import RunError
from rift.review import Entry
from rift.runs import Lab

ASK = """
import sys
import numpy as np, torch
from load import predict
assert not [name for name in sys.modules if name.split(".")[0] == "rift"], "it needs nothing of ours"
np.save("logits.npy", predict(torch.from_numpy(np.load("images.npy"))).numpy())
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    lab = Lab(tmp_path_factory.mktemp("plain") / "lab")
    draw = np.random.default_rng(0)
    entries = [Entry(f"{name}/{i}.png", name, draw.integers(0, 255, (24, 24, 3), np.uint8)) for name in "abc" for i in range(6)]
    store(entries, lab.data, name="three")
    catalog.door("natural", "bundled")(lab.data)
    return lab


def made(lab: Lab, method: Choice, backbone: Choice, task: str = "single_label"):
    """Return a run with weights that somebody might have trained: every one that its method trains is moved at random."""
    data, natural = sorted(
        (one.name for one in lab.data.iterdir()), key=lambda name: (lab.data / name / "manifest.json").stat().st_size
    )
    if "three" not in (lab.data / data / "manifest.json").read_text():
        data, natural = natural, data
    experiment = Experiment(
        data=data,
        natural=natural,
        method=catalog.check("methods", method),
        backbone=catalog.check("backbones", backbone),
        task=catalog.check("tasks", Choice(name=task)),
        training=Training(epochs=1),
    )
    run = lab.submit(experiment)
    torch.manual_seed(3)
    pretrained = trained.pretrained(run)
    task_ = catalog.door("tasks", task)(("a", "b", "c"))
    import copy

    from rift.model import Classifier

    classifier = Classifier(copy.deepcopy(pretrained), task_.head(pretrained))
    catalog.door("methods", method.name)(classifier.backbone, **experiment.method.options)
    tensors = {}
    for name, value in classifier.named_parameters():
        if value.requires_grad:
            scale = 0.3 if name.startswith("head") else 0.02
            tensors[name] = (value.detach() + scale * torch.randn_like(value)).contiguous()
    save_file(tensors, run.path / "weights.safetensors", {"format": "pt"})
    return run


def ours_and_plain(lab: Lab, run, folder) -> tuple[np.ndarray, np.ndarray]:
    lines = plain.write(lab, run)
    assert "rift" not in lines.replace("rift lab", "").casefold().replace(run.id, "")
    (folder / "load.py").write_text(lines)
    shutil.copyfile(run.path / "plain.safetensors", folder / plain.FILE)
    model = trained.build(lab, run)
    size = model.backbone.pixels
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    np.save(folder / "images.npy", images.numpy())
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", ASK]
    done = subprocess.run(command, cwd=folder, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with torch.inference_mode():
        return model(images)[1].numpy(), np.load(folder / "logits.npy")


@pytest.mark.slow
def test_full_finetuning_of_the_embedded_model_is_the_same_to_1e_5(lab, tmp_path):
    run = made(lab, Choice(name="full"), Choice(name="embedded"))
    ours, loaded = ours_and_plain(lab, run, tmp_path)
    assert ours.shape == (3, 3) and np.abs(ours - loaded).max() < 1e-5 and np.ptp(ours) > 1e-2
    assert "exactly" in plain.exactness(run)


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in catalog.names("methods") if name != "full"])
def test_every_method_loads_and_says_the_same(lab, tmp_path, method):
    run = made(lab, Choice(name=method), Choice(name="embedded"))
    ours, loaded = ours_and_plain(lab, run, tmp_path)
    assert np.abs(ours - loaded).max() < 1e-4 * max(1, np.abs(ours).max()) and np.ptp(ours) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_plain_vit_of_timm_needs_one_line_for_its_architecture(lab, tmp_path, method, test_vit):
    run = made(lab, Choice(name=method), Choice(name="checkpoint", options={"path": str(test_vit), "architecture": "test_vit"}))
    ours, loaded = ours_and_plain(lab, run, tmp_path)
    assert np.abs(ours - loaded).max() < 1e-5
    assert 'timm.create_model("test_vit"' in plain.write(lab, run) and "class " not in plain.write(lab, run)


@pytest.mark.slow
def test_a_head_that_draws_images_comes_with_its_source(lab, tmp_path):
    run = made(lab, Choice(name="full"), Choice(name="embedded"), "reconstruction")
    ours, loaded = ours_and_plain(lab, run, tmp_path)
    assert ours.shape == (3, 3, 64, 64) and np.abs(ours - loaded).max() < 1e-5


@pytest.fixture
def test_vit(tmp_path):
    import timm

    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_vit", pretrained=False, img_size=160, num_classes=0).state_dict(), path)
    return path


def test_without_weights_there_is_nothing_to_take_away(lab, tmp_path):
    run = lab.submit(Experiment(data="d", natural="n", seed=99))
    with pytest.raises(RunError, match="weights of this run are not here") as caught:
        plain.write(lab, run)
    assert caught.value.code == "run.missing"


def test_the_example_can_be_taken_away(tmp_path):
    shipped = example.place(tmp_path / "example")
    run = service.runs(service.arms(shipped, service.comparisons(shipped)[0]))[0]
    plain.write(shipped, run)
    state = load_file(run.path / "plain.safetensors")
    assert {key.partition(".")[0] for key in state} == {"vit", "head"} and all(
        one.dtype == torch.float32 for one in state.values()
    )
