"""``nexus-client bench``: real measurements in processes of their own, on a machine that has joined or not."""

import json
from pathlib import Path

import numpy as np
import pytest
from nexus_client.board_bench import QUERIES, bench
from nexus_client.cli import main
from nexus_client.embed import default_base
from nexus_client.light import LightEncoder
from nexus_common.layout import Layout
from nexus_common.recipe import Recipe
from nexus_common.versions import StoredAdapter


def test_figures_fit_together(tmp_path: Path, graphs: Path) -> None:
    layout, model = Layout(1, 0), tmp_path / "model.safetensors"
    StoredAdapter(Recipe(), 1, layout.first_vector(b"bench"), layout).write(model)
    found = bench(default_base(), graphs, "winter-6", model, threads=1, seconds=0.1)
    assert [one.precision for one in found.measured] == ["fp32", "int8"]
    assert found.model == "winter-6" and found.limit.gflops > 0.1
    pieces = LightEncoder(graphs / "encoder-fp32.onnx", default_base(), 1).pieces(QUERIES)
    for one in found.measured:
        assert 0 < one.p50 <= one.p95 <= one.p99
        assert 0 < one.passages_per_second < one.queries_per_second
        assert 0 < one.adapter_share < 1
        assert 20 < one.idle_mb <= one.most_mb < 1000
        assert one.start_seconds > 0
        assert one.query_pieces == round(np.mean([len(ids) for ids in pieces.ids]))
        assert f"{one.precision} {one.queries_per_second:.0f} queries/s" in found.line
    assert found.limit.query_ms < found.limit.passage_ms


def test_a_machine_that_has_not_joined_can_be_measured(
    tmp_path: Path, graphs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "nexus_client.board_bench.encoder_file", lambda base, folder, precision: graphs / f"encoder-{precision}.onnx"
    )
    assert main(["--home", str(tmp_path), "--json", "bench", "--seconds", "0.1", "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "base" and found["threads"] == 1 and found["line"].startswith("nexus bench 1: ")
    assert main(["--home", str(tmp_path), "--site", "hospital-a", "bench"]) == 1
    assert "hospital-a" in capsys.readouterr().err


def test_of_two_sites_one_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for site in ("a", "b"):
        (tmp_path / site).mkdir()
        (tmp_path / site / "site.toml").write_text(f'site = "{site}"\n')
    assert main(["--home", str(tmp_path), "bench"]) == 1
    assert "which site? --site NAME; under" in capsys.readouterr().err
