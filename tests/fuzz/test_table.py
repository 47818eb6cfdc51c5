"""The table of decoders is whole: whatever in the product reads bytes or text by its name is in it, or said why not."""

import ast
import re

from tests.fuzz.decoders import DECODERS
from tests.test_layers import MODULES, name

READS = re.compile(r"_?(decode|parse|read|load|unpack|from_|split_|receiv|take_|handle|unseal)")
ELSEWHERE = {
    "adapter.StoredModule.load": "an exported model of the site's own",
    "adapter.DendriticAdapter.load_vector": "numbers that Layout.split has checked",
    "ca.CertificateAuthority._load": "this machine's own files",
    "certs._load": "this machine's own keys",
    "certs.load_identity": "this machine's own keys",
    "certs.load_transport_key": "this machine's own keys",
    "cli.AnywhereOptions.parse_args": "what a person types",
    "cli_plans.read_text": "a plan's file, parsed at the server: plan-file",
    "material.RankingTask.from_labels": "rows that were read",
    "material.RankingTask.from_pairs": "rows that were read",
    "material.ScoredTask.from_pairs": "rows that were read",
    "own_rounds.read": "what the site's agent wrote: tests/unit/test_site_report.py",
    "rounds.SiteRounds.handle": "typed messages: tests/unit/test_site_rounds.py",
    "agent.Agent._handle": "typed messages",
    "exchange._decoded": "the server's way into wire.decode: tests/federation/test_hostile_replies.py",
    "embed.Encoder._loaded": "no reader",
    "embed.loaded": "the base model's own files",
    "light_adapter.LightAdapter.reads_states": "no reader",
    "listen.read_token": "this machine's own file",
    "model_card.loads": "no reader",
    "openai_api._read": "embeddings-request, adapt-request",
    "safety.take_back": "no reader",
    "shelf.Shelf.load": "adapter-file",
    "gathering.Gathering.ready": "no reader",
    "workspace.Workspace.ready": "no reader",
    "rpc._handlers": "no reader",
    "link.Link.take_certificate": "this site's own certificate",
    "gathering.Gathering.take_up": "no reader",
    "rounds.Rounds.take_up": "no reader",
    "masking.Masking.take_up": "a plan that was read",
    "secagg.server.Server._take_up": "adverts that were read",
    "secagg.client.Client._take_adverts": "to-a-site",
    "secagg.client.Client._take_inbox": "to-a-site",
    "tail.decode": "sums that codec.decode has read: tests/unit",
    "documents.read_documents": "markdown, plain-text",
}


def readers() -> set[str]:
    """Every function of the product whose name says that it reads, as module.Class.function."""
    found = set()
    for path in MODULES:
        module = name(path).removesuffix(".py").split("/", 1)[1].replace("/", ".")
        for node in ast.parse(path.read_text()).body:
            inner = node.body if isinstance(node, ast.ClassDef) else [node]
            prefix = f"{module}.{node.name}" if isinstance(node, ast.ClassDef) else module
            found |= {
                f"{prefix}.{one.name}" for one in inner if isinstance(one, ast.FunctionDef) and READS.match(one.name)
            }
    return found


def test_every_reader_is_fuzzed_or_said_why_not() -> None:
    covered = {one for decoder in DECODERS.values() for one in decoder.covers.split()}
    missing = sorted(readers() - covered - ELSEWHERE.keys())
    assert not missing, f"put into tests/fuzz/decoders.py, or here with a reason: {missing}"
    assert not ELSEWHERE.keys() - readers(), "a reason for what is gone"
