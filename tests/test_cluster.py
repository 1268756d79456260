"""WISE's shards over a cluster: as here, to the bit, also when a worker is killed."""

import contextlib
import os
import signal
import time

import pytest
import torch
from typer.testing import CliRunner

from errata import WiseConfig, get_edit_model
from errata.cli import app
from errata.cluster import cluster, distribute, is_distributed, run_parts
from errata.methods.association.wise import writer

CONFIG = WiseConfig(
    layer=2,
    steps=4,
    edits_per_shard=2,
    chunk_rows=1,
    background=16,
    prefixes=1,
    rewordings=1,
    contrast=1,
)


def taught(spreading_over=contextlib.nullcontext):
    from edited import EDITS  # not at the top: a worker that imports this file has no such path
    from families import tiny_model, tiny_tokenizer

    torch.set_num_threads(1)
    model = get_edit_model(tiny_model("llama"), CONFIG, tiny_tokenizer())
    counted = []
    model.edit(EDITS[:1], check=False)
    with spreading_over():
        model.edit(EDITS[1:], check=False, progress=counted.append)
    assert sum(counted) == 5
    return model.method.state()


def _slowly(shared, part):
    time.sleep(0.2)
    return shared + part


@pytest.mark.long  # a minute, most of it Ray's own
@pytest.mark.parametrize("count", [1, 2])
def test_shards_over_nodes_one_of_whose_workers_is_killed(count, tmp_path, monkeypatch):
    """Two processors, of one node or of two."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")  # behind other tests its workers would starve
    killed = tmp_path / "killed"

    def dies_once(shared, part, train=writer._train_remotely):
        with contextlib.suppress(FileExistsError):
            killed.touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        return train(shared, part)

    monkeypatch.setattr(writer, "_train_remotely", dies_once)
    nodes = Cluster()
    try:
        for _ in range(count):
            nodes.add_node(num_cpus=2 // count)
        ray.init(address=nodes.address, log_to_driver=False)
        with cluster():  # it is joined already, so it is not left
            tensors, values = taught(distribute)
            assert dict(run_parts(_slowly, 10, [1, 2, 3], cpus=1, gpus=0)) == {0: 11, 1: 12, 2: 13}
        assert ray.is_initialized()
    finally:
        ray.shutdown()
        nodes.shutdown()
    assert killed.exists(), "no worker trained a shard"
    here, said = taught()
    assert values == said and tensors.keys() == here.keys() and len(values["shards"]) == 3
    assert all(torch.equal(tensors[name], here[name]) for name in here)


def test_only_within_it_is_spread():
    assert not is_distributed()
    with distribute():
        assert is_distributed()
    assert not is_distributed()


def test_an_executor_that_there_is_not(tmp_path):
    (tmp_path / "edits.jsonl").write_text('{"prompt": "Who?", "target": "Ana", "subject": "Who"}\n')
    asked = [
        "edit",
        "atlas",
        "-m",
        "ft",
        "--edits",
        str(tmp_path / "edits.jsonl"),
        "--out",
        str(tmp_path / "out"),
    ]
    found = CliRunner().invoke(app, [*asked, "--executor", "rey"])
    assert found.exit_code == 2 and "--executor is local or ray; got 'rey'" in found.stderr
    assert not (tmp_path / "out").exists()
