"""What a plan means, in the sentences that people approve: text with gaps, which ``plan_page`` fills in.

The reader is a data-protection officer.  Facts: design, "How an approval works" and "Three sites, five sites"; privacy
design; specification, "What holds, and why" and "Limits".  A line begins with our own words, never with a gap for free
text; a gap at the end of a line or alone on one holds whole lines, or nothing.
"""

from typing import Final

PAGE: Final = """\
# Plan {name}

NEXUS lets organisations improve one model for text search together, each on its own text and its own machine. This
page is what the people of each site approve. The plan's hash is `{hash}` (the first 16 of 64 digits).
Approving this plan approves its {derived}.{changes}{words}

## Purpose, end and sites

Purpose, in the words of the plan's author: *{purpose}*

Last day: **{end}**. After it every site refuses to train under this plan.

{members}

## What leaves each site, and what comes back

Each site trains a small adapter to a language model, which itself stays as it is. An *update* is the change to the
adapter that one site proposes; a *version* is the adapter that all sites share.

- **Leaves in each round:** one update, masked and signed by the site: {dim:,} numbers of {width} bytes
  ({masked:.2f} MB){trial}, of which the server can read only the sum over at least {quorum} sites.
- **In the same masked sum:** {figures}. The server sees means over the sites.
- **Leaves beside that:** one-time public keys and sealed shares of them; signatures; the words approved, pending or
  withdrawn (signed); preparing or ready; hashes of versions; refusal codes from a fixed list.
- **Goes to:** the consortium's server only. At most {updates} masked updates of a site under this plan; each site
  counts its own.
- **Never leaves:** text, embeddings, and any update, count or score that can be read by itself.
- **Comes back:** versions, and plans to approve. Nothing that comes back is run as a program.

## Who could learn what

{observers}

## What a version gives away

Measured before the project began: from one site's plain update, training sentences are re-identified among candidates
in 99.7 to 100 % of cases. From the true sum of 5 sites with 30 sentence pairs each, it is still 99.7 %. Secure
aggregation hides whose update it is, not what was learnt. **So a version is confidential among the sites.**

Privacy of records: {privacy}

## How many sites a round needs

The plan names {n} sites. The threshold of secure aggregation is floor(2n/3) + 1 = {t}, the plan's smallest cohort
(`min_cohort`) is {min_cohort}. The larger of the two is the quorum: **{quorum} sites make a version, fewer never do.**
{spare}{advice}

## Who controls each setting

What the plan sets is the same at every site that takes part, and each has approved it; a change is another plan.

{settings}

{rest}

## What remains
{begins}
- A lying site, or the server, can spoil a version: an update is bounded in size, but nobody can check what is in it.
  `nexus-client evaluate` shows the effect at each site, `nexus-server models rollback` goes back.
- A version keeps what it learnt after consent is withdrawn. `nexus-server models withdraw` stops its use at each
  site's next contact; exported copies cannot be called back.{near_equal}
- Times tell something: how long a site prepares and trains shows roughly how much text it has.
- No outside audit has been made. The masks do not withstand quantum computers, and Python cannot promise to erase keys
  from memory.

## Approval

Signed for plan **{name}** with the hash `{hash}`, and entered at the site with:

`nexus-client plan approve {name} --by 'NAME, OFFICE' --ref REFERENCE`
"""
CHANGES: Final = """

## What is different from the plan approved before

{lines}

{remarks}Approving this plan ends the approval of plan {name} with the hash `{hash}`."""
COMPARED: Final = "the server can compare before and after; without differential privacy\nthat estimates the"
NEWCOMER: Final = f"A site was added: {COMPARED} newcomer's part."
LEAVER: Final = f"A site was removed: {COMPARED} part of the one that left."
NEW_KEY: Final = "A key has changed: ask that site why, on a number from your own directory."
SAME: Final = "Nothing but the name and where training begins differs: sites, keys and all other settings are the same."
WORDS: Final = """

## The twelve words

{lines}

Read them aloud in one call of all sites, on numbers from your own directory, not on those below. All sites must read
the same words in the same order. **If one word differs, do not approve.** `nexus-client plan approve` asks for the
words as another site read them."""
MEMBERS: Final = ("site", "controller", "contact", "key (first 16 digits)")
OBSERVERS: Final = (
    ("who", "what they can do", "what they learn"),
    (
        "the server and its operator",
        "stop or delay a run, keep what it receives",
        "the sum of at least {quorum} sites and nothing of a single one, unless {helpers} it",
    ),
    (
        "another site",
        "compare versions, lie in its update",
        "the versions. All others of a round together, here {others}, can always compute the last one's update "
        "from them. A site that also operates the server can compute the sum of the other {others}",
    ),
    ("the network", "watch or cut connections", "who talks to whom, when and how much (TLS 1.3)"),
    ("a thief of a site's machine", "read its disk", "text, embeddings, keys, versions, unless the disk is encrypted"),
    (
        "whoever is given a version",
        "use it, probe it",
        "the model, and {given} whether a known sentence was trained on",
    ),
)
REST: Final = "The plan's other settings, which the words cover too: "
NO_NOISE: Final = """**epsilon: none (records are not protected)**. A site can approve this only where its
`policy.toml` says `accept_no_record_privacy = true`."""
NOISE: Final = """**epsilon: {epsilon} at delta {delta:g}** over all {updates} updates, for one training row; who has
several rows is protected less. It rests on noise {noise:g}, sampling {sampling:g} (the odds of a row to be used in a
round) and honest {honest} (sites in each sum that add their noise and keep it secret). Nothing protects a row from
its own site. This release cannot train with noise yet: every site refuses to approve such a plan."""
NOBODY: Final = "**Nobody can be spared:** if one site is away, the run waits and nothing is lost."
SPARE: Final = "{spare} can be missing; if more are away, the run waits and nothing is lost."
ADVICE: Final = (
    "\nFive sites or more are advised: then one can be away, and no two together can compute a third's update."
)
SETTINGS: Final = (
    ("setting", "value", "who sets it"),
    ("rounds", "{rounds}", "the plan"),
    ("training steps of a site in a round", "{steps}", "the plan"),
    ("clip norm: the largest size of an update", "{clip:g}", "the plan"),
    ("base model", "`{base}` (first 16 digits of its hash)", "the plan"),
    ("places of the adapter", "{places}{search}", "the plan"),
    ("growth of the adapter", "{growth}", "the plan"),
    ("hours of rounds", "{hours} UTC", "the plan"),
    ("a run begins when", "{starts}", "the plan"),
    ("smallest cohort, clip bound, hours, fewest rows", "its `policy.toml`, which beats the plan", "each site alone"),
    ("pause, leave, withdraw, at any time", "`nexus-client pause`, `leave`, `plan withdraw`", "each site alone"),
    ("updates of a site", "at most {updates}: twice the rounds plus 20", "nobody"),
)
FIGURES: Final = {
    "train_loss": "mean loss of the round's training",
    "loss": "loss of a version on a small part of the hold-out",
    "score": "its score there",
    "questions": "the number of questions behind both",
    "vote": "a vote for or against the base model",
}
TRIAL: Final = ", in a trial {arms} updates side by side ({most:.2f} MB at most)"
GROWTH: Final = (
    "at most {most} by {places}: each stays only where it beat its own control in a trial of {rounds} rounds"
)
NO_GROWTH: Final = "none"
SEARCH: Final = "; for each version a site's search encodes its text again"
STARTS: Final = {"every-site": "every site has approved", "quorum": "a quorum (here {quorum} sites) has approved"}
TOLD: Final = (  # settings with a place of their own; all others are listed
    *("name", "purpose", "end_date", "rounds", "base_model", "min_cohort", "start", "hours_utc", "local.steps"),
    *("local.clip_norm", "adapter.salience", "adapter.projection_dendrites", "origin.", "privacy."),
)
NEAR_EQUAL: Final = """
- A dishonest server can hold two almost equal rounds, one of them without a site, and
  estimate that site's update from the two sums. Only the limit on updates, and noise, restrain this."""
BEGINS: Final = """
- Training begins at {version} of plan `{plan}`, which {checked}.
  What that version learnt, from every site of that plan, stays in it."""
CHECKED: Final = "each site compares with the hash `{vector}`"
UNCHECKED: Final = "no site can check"
