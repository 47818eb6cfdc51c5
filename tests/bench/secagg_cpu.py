"""CPU and bytes of secure aggregation, beside this machine's AES limit, Flower's SecAgg+ and plain averaging.

``python -m tests.bench.secagg_cpu`` runs whole rounds of nexus-sa/1 in memory: every site, and the server.  Times are
CPU time (``time.process_time``).  A virtual machine counts as CPU time what its host takes away, milliseconds at once:
so a step's figure is its lowest time, medians stand beside the main ones, and what is compared takes turns.
"""

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from flwr.app import ConfigRecord
from flwr.client.mod.secure_aggregation.secaggplus_mod import SecAggPlusState as FlowerSite
from flwr.client.mod.secure_aggregation.secaggplus_mod import _collect_masked_vectors, _setup, _share_keys
from flwr.common import bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt, generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_addition, parameters_subtraction
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen, share_keys_plaintext_concat
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key
from nexus_common.secagg import codec
from nexus_common.secagg.client import Offer
from nexus_common.secagg.keys import digest
from nexus_common.secagg.masks import MaskedSum, unpack_signed
from rich import box
from rich.console import Console
from rich.table import Column, Table

from tests.protocol.test_epochs import Federation

SIZES, DIM, SLOTS, REPEATS, FLOWER_REPEATS = (3, 5, 16, 64), 147_840, 50, 9, 3
UPDATES: Final = np.random.default_rng(1).standard_normal((max(SIZES), DIM)) / DIM**0.5  # each of L2 norm about 1
PLAIN: Final = [update.astype(np.float32).tobytes() for update in UPDATES]
ZEROS, BUFFER = bytes(3 * (DIM + 1)), bytearray(3 * (DIM + 1) + 16)
SETUP, ROUND = ("advert", "share", "inbox"), ("encode", "input", "sign", "reveal")  # a site's steps
SERVER: Final = ("input", "sign", "open", "reveal", "unmask")
P = ParamSpec("P")
T = TypeVar("T")
console = Console(width=150)


class Clock(dict[tuple[object, ...], list[float]]):
    """CPU milliseconds by what they went to."""

    def __call__(self, key: tuple[object, ...], run: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``run`` returns; its time is kept under ``key``."""
        began = time.process_time_ns()
        result = run(*args, **kwargs)
        self.setdefault(key, []).append((time.process_time_ns() - began) / 1e6)
        return result


class Secure:
    """The sites and the server of one plan, with a clock at every step."""

    def __init__(self, n: int, clock: Clock) -> None:
        self.n, self.clock, self.slot = n, clock, 0
        self.federation = Federation(n, SLOTS, DIM)
        self.plan, self.sites, self.server = self.federation.plan, self.federation.sites, self.federation.server
        self.missing = sorted({0, n - self.plan.quorum})  # of a round without drop-outs, and with the most
        adverts = self._trip(0, "advert", range(n), setup := self.server.start())
        envelopes = self._trip(0, "share", range(n), table := self.server.adverts())
        for site, inbox in zip(self.sites, map(self.server.inbox, range(n)), strict=True):
            clock((n, 0, "inbox"), site.handle, inbox)
        self.sizes = [len(adverts[0] + envelopes[0]), len(setup + table + inbox)]  # of a site, up and down

    def _trip(self, missing: int, step: str, who: Iterable[int], message: bytes, *offers: Offer) -> list[bytes]:
        """Each site's reply to a message, all of which the server then takes."""
        key, offer = (self.n, missing, step), dict(enumerate(offers))
        replies = [self.clock(key, self.sites[i].handle, message, offer.get(i)) or b"" for i in who]
        for reply in replies:
            self.clock((*key, "server"), self.server.receive, reply)
        return replies

    def round(self, missing: int) -> None:
        """One slot without the inputs of the last ``missing`` sites; its sum is compared with the plain one."""
        n, clock, server, who = self.n, self.clock, self.server, range(self.n - missing)
        message, self.slot = server.round(self.slot, model := digest(os.urandom(8))), self.slot + 1
        x = [clock((n, missing, "encode"), codec.encode, self.plan, UPDATES[i], 1, os.urandom) for i in who]
        inputs = self._trip(missing, "input", who, message, *(Offer(model, partial(x.__getitem__, i)) for i in who))
        signed = self._trip(missing, "sign", who, commit := server.commit())
        opening = clock((n, missing, "open", "server"), server.open).message
        shares = self._trip(missing, "reveal", who, opening)
        total = clock((n, missing, "unmask", "server"), server.total)
        np.testing.assert_array_equal(unpack_signed(total, self.plan.mod_bits), np.sum(x, axis=0))
        if not missing:
            self.sizes[2:] = len(inputs[0] + signed[0] + shares[0]), len(message + commit + opening)

    def limits(self) -> None:
        """Raw keystreams, the masks and their sum alone, the signature alone."""
        for _ in range(self.n):
            self.clock((self.n, "keystream"), keystream, os.urandom(32))
        self.clock((self.n, "masks"), masked, [os.urandom(32) for _ in range(self.n)])
        self.clock((self.n, "signature"), self.federation.keys[0].sign, ZEROS)

    def site_cpu(self, missing: int, *steps: str, by: Callable[[list[float]], float] = min) -> float:
        """A site's CPU for some steps."""
        return sum(by(self.clock[self.n, missing, step]) for step in steps)

    def server_cpu(self, missing: int, *steps: str, by: Callable[[list[float]], float] = min) -> float:
        """The server's CPU for some steps, each as often as a round has it."""
        times = [self.clock[self.n, missing, step, "server"] for step in steps]
        return sum(by(some) * len(some) / REPEATS for some in times)


def keystream(key: bytes) -> int:
    """An input's bytes of AES-256-CTR, at its fastest."""
    return Cipher(AES256(key), CTR(bytes(16))).encryptor().update_into(ZEROS, BUFFER)


def masked(keys: list[bytes]) -> bytes:
    """Integers under masks that are added and subtracted by turns."""
    total = MaskedSum(DIM + 1, 24)
    total.add(np.zeros(DIM + 1, np.int64))
    for i, key in enumerate(keys):
        total.add_mask(key, 1 - 2 * (i % 2))
    return total.packed()


class Flower:
    """Flower's SecAgg+ on a complete graph: its client mod's own functions, and its workflow's steps at the server."""

    def __init__(self, n: int, t: int, clock: Clock) -> None:
        self.n, self.t, self.clock, self.bytes = n, t, clock, 0
        ranges = {"clipping_range": 8.0, "target_range": 2**22, "mod_range": 2**32, "max_weight": 1000.0}
        self.settings = ConfigRecord({"sample_num": n, "share_num": n, "threshold": t, **ranges})
        self.public: Any = {str(i): [*_setup(FlowerSite(nid=i), self.settings).values()] for i in range(n)}

    def measure(self, survivors: list[int]) -> None:
        """Each step once, for site 0; shares are joined for each number of survivors, all of theirs as it does."""
        site, clock, key = FlowerSite(nid=0), self.clock, (self.n, "flower")
        self.public["0"] = [*clock((*key, "keys"), _setup, site, self.settings).values()]
        clock((*key, "share"), _share_keys, site, ConfigRecord(self.public))
        parts = site.rd_seed_share_dict[0], site.sk1_share_dict[0]  # the others' are as long
        boxes = [encrypt(k, share_keys_plaintext_concat(j, 0, *parts)) for j, k in site.ss2_dict.items()]
        heard = ConfigRecord({"ctxts": boxes, "srcs": list(site.ss2_dict)})
        update = ndarrays_to_parameters([UPDATES[0].astype(np.float32)])
        packed: Any = clock((*key, "mask"), _collect_masked_vectors, site, heard, 1000, update)["masked_params"]
        self.bytes = sum(map(len, packed))
        total = [bytes_to_ndarray(one) for one in packed]
        prg = partial(pseudo_rand_gen, num_range=2**32, dimensions_list=[one.shape for one in total])
        pair = partial(generate_shared_key, bytes_to_private_key(site.sk1), bytes_to_public_key(self.public["1"][0]))
        clock((*key, "add"), lambda: parameters_addition(total, [bytes_to_ndarray(one) for one in packed]))
        clock((*key, "self"), lambda: parameters_subtraction(total, prg(site.rd_seed)))
        clock((*key, "pair"), lambda: parameters_addition(total, prg(pair())))
        for kind, secret in (("seed", site.rd_seed), ("key", site.sk1)):
            shares = create_shares(secret, self.t, self.n)
            for count in survivors:
                clock((*key, kind, count), combine_shares, shares[:count])

    def site_cpu(self) -> float:
        """A site's CPU in a round, each of which has new keys."""
        return sum(min(self.clock[self.n, "flower", step]) for step in ("keys", "share", "mask"))

    def server_cpu(self, missing: int) -> float:
        """The server's CPU in a round: single steps, multiplied."""
        count, one = self.n - missing, {key[2:]: min(times) for key, times in self.clock.items() if key[0] == self.n}
        gone = one["key", count] + (self.n - 1) * one["pair",]
        return count * (one["add",] + one["self",] + one["seed", count]) + missing * gone


def average(n: int) -> np.ndarray:
    """The mean of n messages where nothing is secret."""
    total = np.zeros(DIM, np.float32)
    for message in PLAIN[:n]:
        total += np.frombuffer(message, np.float32)
    return total / n


def show(title: str, heads: str, rows: Iterable[tuple[object, ...]], note: str) -> None:
    """One table; its ``heads`` are parted by bars."""
    columns = [Column(head, justify="right") for head in heads.split("|")]
    table = Table(*columns, title=title, title_justify="left", box=box.MARKDOWN)
    for row in rows:
        table.add_row(*(f"{cell:,.2f}" if isinstance(cell, float) else str(cell) for cell in row))
    console.print(table, f"{note}\n", sep="")


def report(clock: Clock, pairs: list[tuple[Secure, Flower]]) -> None:
    """Every table."""
    inputs, rounds, sizes, others, met = [], [], [], [], ("NOT met", "met")
    for run, flower in pairs:
        n, cpu, median, setup_cpu = run.n, run.site_cpu, statistics.median, run.site_cpu(0, *SETUP)
        limit, masks, signature, plain = (min(clock[n, step]) for step in ("keystream", "masks", "signature", "plain"))
        limit, message, ratio = n * limit, cpu(0, "input"), cpu(0, "input") / (n * limit)
        cells = cpu(0, "encode"), limit, masks, masks / limit, message, cpu(0, "input", by=median), ratio
        inputs.append((n, *cells, met[ratio <= 2], signature))
        setup, size = sum(run.sizes[:2]), sum(run.sizes[2:])
        more, whole = (100 * (each / (3 * DIM) - 1) for each in (size, size + setup / SLOTS))
        sizes.append((n, setup_cpu, *(each / 1000 for each in run.sizes), size / (4 * DIM), more, met[more < 2], whole))
        for missing in run.missing:
            site = [cpu(missing, *steps) for steps in (ROUND[:1], ROUND[1:2], ROUND[2:], ROUND)]
            server = [run.server_cpu(missing, *steps) for steps in (SERVER[:1], SERVER[-1:], SERVER)]
            middle = (n - missing) * cpu(missing, *ROUND, by=median) + run.server_cpu(missing, *SERVER, by=median)
            everybody = (n - missing) * site[-1] + server[-1]
            rounds.append((n, missing, *site, *server, everybody, middle, met[everybody < 1000]))
            ours, theirs, other = site[-1] + setup_cpu / SLOTS, flower.site_cpu(), flower.server_cpu(missing)
            ratios = ours, theirs, theirs / ours, server[-1], other, other / server[-1]
            others.append((n, missing, *ratios, plain, flower.bytes / DIM))
    console.print(f"\n{DIM:,} parameters, 24 bits; CPU ms, lowest of {REPEATS} rounds and all sites\n")
    show("1. One site's input (goal: at most twice the AES limit)",
         "sites|encode|AES limit|masks, sum|/ limit|signed input|its median|/ limit|goal|signature alone", inputs,
         "encode: rounding with coins from the system.  AES limit: a raw keystream for each mask, into one buffer.\n"
         "signed input: keys, masks, sum, packing, and a signature that hashes all bytes twice, at any n.")  # fmt: skip
    show("2. A round (goal: under 1,000 for everyone)",
         "sites|missing|a site: encode|input|signatures|all|server: inputs|unmask|all|everyone|medians|goal", rounds,
         "everyone: one site's time, times the sites that take part, and the server; every site was run.\n"
         "Missing sites send no input; 3 sites bear none.  server, inputs: check signature, hash, add.")  # fmt: skip
    show(f"3. Set-up for {SLOTS} rounds, and bytes (goal: a round under 2 % above 3 bytes a parameter)",
         "sites|set-up CPU, a site|kB up|down|a round: kB up|down|/ 4 bytes|% above 3|goal|% with set-up", sizes,
         f"No drop-outs, the model not counted; with set-up: 1 / {SLOTS} of its bytes too.")  # fmt: skip
    show("4. A round against Flower's SecAgg+ and plain averaging",
         "sites|missing|a site|Flower|times|server|Flower|times|plain|Flower: bytes a parameter", others,
         f"Ours: with 1 / {SLOTS} of set-up.  Flower: steps timed singly, {FLOWER_REPEATS} times, multiplied; it makes "
         "new keys every round,\nsigns nothing, and its masks have 32-bit seeds (ours: 256-bit keys).")  # fmt: skip


def main() -> None:
    """Measure and print."""
    clock = Clock()
    console.print(f"set-up of {SIZES} sites, then {REPEATS} rounds of each; it takes a minute or two")
    runs = [[Secure(n, clock) for _ in range(max(SIZES) // n)][-1] for n in SIZES]  # as many sites at every size
    pairs = [(run, Flower(run.n, run.plan.t, clock)) for run in runs]
    gc.freeze()  # or the collector would look through the keys of 64 sites in the middle of a step
    for repeat in range(REPEATS):
        for run, flower in pairs:
            for missing in run.missing:
                run.limits()
                run.round(missing)
            clock((run.n, "plain"), average, run.n)
            if repeat < FLOWER_REPEATS:
                flower.measure([run.n - missing for missing in run.missing])
    report(clock, pairs)


if __name__ == "__main__":
    main()
