"""A site's one-time keys for an epoch: drawn, advertised, and shared among all (specification, "Set-up")."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nexus_common.errors import Refusal
from nexus_common.secagg import keys, shamir
from nexus_common.secagg.labels import label
from nexus_common.secagg.messages import Advert, Adverts, members, u
from nexus_common.secagg.plan import ProtocolPlan

Peers = Mapping[int, Advert]


@dataclass(frozen=True, repr=False)  # no secret gets into a log by accident
class Drawn:
    """The secrets behind an advert."""

    number: int
    advert: bytes
    enc_secret: bytes
    mask_secrets: list[bytes]  # K x [32]
    seeds: list[bytes]  # K x [32]


@dataclass(repr=False)
class Slot:
    """What a site keeps for one slot until it is used or passed over."""

    seed: bytes
    pairs: dict[int, bytes]  # other present site -> DH of the two mask keys


@dataclass(repr=False)
class Dealt:
    """An epoch after its keys were shared; the secrets of ``Drawn`` are gone but for what is here."""

    setup_hash: bytes
    present: list[int]
    box_keys: dict[int, bytes]  # sender -> key of the box that will come from it
    slots: dict[int, Slot]
    shares: dict[int, dict[int, tuple[bytes, bytes]]] = field(default_factory=dict)  # slot -> owner -> (key, seed)


def draw(plan: ProtocolPlan, site: int, number: int, key: Ed25519PrivateKey, random: shamir.Random) -> Drawn:
    """New one-time keys and their signed advert."""
    enc_secret = random(keys.KEY)
    mask_secrets, seeds, offers = [], [], []
    for slot in range(plan.slots):
        mask_secrets.append(shamir.to_bytes(shamir.scalar(random)))
        seeds.append(shamir.to_bytes(shamir.scalar(random)))
        commit = keys.seed_commit(plan.hash, number, slot, site, seeds[-1])
        offers.append(keys.public_key(mask_secrets[-1]) + commit)
    head = label("advert") + plan.hash + u(number, 4) + u(site, 1) + keys.public_key(enc_secret)
    return Drawn(number, keys.signed(key, head + b"".join(offers)), enc_secret, mask_secrets, seeds)


def check_adverts(adverts: Adverts, plan: ProtocolPlan, site: int, quorum: int, drawn: Drawn) -> Peers:
    """All present sites' adverts, own included; a Refusal for the first row of the table that does not hold."""
    if adverts.present >> plan.n:
        raise Refusal("unknown-site", f"site {adverts.present.bit_length() - 1} is present; the roster has {plan.n}")
    count = adverts.present.bit_count()
    if count < (plan.n if plan.strict else quorum):
        raise Refusal(
            "roster-set", f"{count} of {plan.n} sites are present; it takes {plan.n if plan.strict else quorum}"
        )
    if not adverts.present >> site & 1:
        raise Refusal("roster-set", "this site is not among those present")
    found = dict(zip(members(adverts.present), adverts.adverts, strict=True))
    if found[site] != drawn.advert:
        raise Refusal("own-keys-changed", "the server shows other keys in this site's name than this site made")
    peers: dict[int, Advert] = {}
    for number, data in found.items():
        try:
            peer = Advert.parse(data, plan.slots)
        except Refusal:
            raise Refusal("wrong-context", f"what stands for site {number}'s advert is none") from None
        if (peer.plan_hash, peer.epoch, peer.site) != (plan.hash, drawn.number, number):
            raise Refusal("wrong-context", f"site {number}'s advert is for another plan, epoch or site")
        if not keys.is_signed(plan.roster[number][1], peer.body, peer.signature):
            raise Refusal("bad-signature", f"{plan.roster[number][0]} did not sign its advert")
        peers[number] = peer
    public = [one for peer in peers.values() for one in (peer.enc_pk, *peer.mask_pks)]
    if len(set(public)) != len(public):
        raise Refusal("key-reused", f"{len(public)} one-time keys, {len(set(public))} of them different")
    return peers


def share(
    plan: ProtocolPlan, site: int, adverts: Adverts, peers: Peers, drawn: Drawn, random: shamir.Random
) -> tuple[list[bytes], Dealt]:
    """Boxes for the other present sites, ascending, and what is kept; Refusal ``bad-key``."""
    setup_hash, others = adverts.setup_hash, [j for j in peers if j != site]
    exchange = keys.Exchanger(drawn.enc_secret).shared
    sealing = {j: exchange(peers[j].enc_pk) for j in others}
    slots = {}
    for s, secret in enumerate(drawn.mask_secrets):
        exchange = keys.Exchanger(secret).shared
        slots[s] = Slot(drawn.seeds[s], {j: exchange(peers[j].mask_pks[s]) for j in others})
    rows: list[list[bytes]] = [[] for _ in range(plan.n)]  # of each site, present or not: two shares a slot
    for pair in zip(drawn.mask_secrets, drawn.seeds, strict=True):
        for secret in pair:
            dealt = shamir.split(int.from_bytes(secret, "little"), plan.t, plan.n, random)
            for row, one in zip(rows, dealt, strict=True):
                row.append(shamir.to_bytes(one))
    boxes = [keys.seal(keys.envelope_key(sealing[j], setup_hash, site, j), b"".join(rows[j])) for j in others]
    box_keys = {j: keys.envelope_key(sealing[j], setup_hash, j, site) for j in others}
    own = {s: {site: (rows[site][2 * s], rows[site][2 * s + 1])} for s in slots}
    return boxes, Dealt(setup_hash, list(peers), box_keys, slots, own)


def unpack(
    plan: ProtocolPlan, site: int, dealt: Dealt, boxes: list[bytes]
) -> dict[int, dict[int, tuple[bytes, bytes]]]:
    """The shares of all present sites' secrets, from the boxes of the others, ascending; Refusal ``share-decrypt``."""
    shares = {s: dict(own) for s, own in dealt.shares.items()}
    for sender, box in zip((j for j in dealt.present if j != site), boxes, strict=True):
        name = plan.roster[sender][0]
        try:
            text = keys.unseal(dealt.box_keys[sender], box)
        except Refusal:
            raise Refusal("share-decrypt", f"the box of {name} does not open: {name} or the server spoilt it") from None
        both = [text[at : at + shamir.SHARE] for at in range(0, len(text), shamir.SHARE)]
        if any(shamir.from_bytes(one) is None for one in both):
            raise Refusal("share-decrypt", f"{name} dealt a share that is not below p")
        for s in range(plan.slots):
            shares[s][sender] = (both[2 * s], both[2 * s + 1])
    return {s: dict(sorted(of.items())) for s, of in shares.items()}
