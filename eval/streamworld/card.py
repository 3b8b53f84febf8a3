"""The model card: what the model is, how it was made, what it scores, what it cannot do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.streamworld import vocabulary as words
from eval.streamworld.wording import KINDS

Figure = Mapping[str, Any]
"""One row of `measure --json`: duration_s, kind, exact, option, hit, n, crf, retrieved, recent."""

_TEXT = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
tags: [video, streaming, synthetic]
---
# StreamWorld {millions:.2f} M

The built-in model of Lookback: a stock `LlavaOnevisionForConditionalGeneration` with
{parameters:,} parameters, trained from scratch on StreamWorld, a generated world. It makes the
demo truthful and lets claims about retrieval, token reduction and quantisation be measured as
answer accuracy on a CPU. It knows nothing outside StreamWorld.

**It was trained to be retrieved from**: a contrastive loss on exactly the retrieval score, and
questions that see only the frames this score picks. Without the loss, retrieval is at chance at
this size. So what it shows is that the system works, not that retrieval without training works
on large models.

## Inputs

96 x 96 px frames, one a second, {tokens} visual tokens each. Prompt (chat template in the folder):

```
{prefix}<video tokens><image_newline>
{{question}}{tail}```

One word is one token; case and the space before punctuation do not matter. Words outside the
vocabulary become `<unk>`.

The retrieval score of a frame in a layer: mean over the tokens of the user's question (not
`image_newline`, not the line end after it, not the template's tail) of the query before RoPE,
summed over each group of query heads; dot the mean over the frame's tokens of the key before RoPE.

Recommended (`lookback.json`): window of {window_tokens} tokens, {retrieved} frames in context of
which the newest is one.

## The world

{entity_count} objects ({entities}),
{colour_count} colours ({colours}),
{scene_count} scenes ({scenes}).
One object at a time at a free position; a moving one drags a streak for its first three frames.

## Questions and accuracy

Held-out seeds; {crf}; {context}.
`exact`: the greedy answer is right to the word. `option`: the right one of four answers is the
most likely. `hit`: share of layers that picked a frame of the evidence. Measured in one process,
no token reduction; several questions share a clip. What the service scores is in the project's
report.

{tables}

Kinds: {kinds}.

## Recipe

One command, two CPU cores: `python -m eval.streamworld train --out DIR`, then
`python -m eval.streamworld export --run DIR --out eval/streamworld/checkpoint`.

1. Vision ({vision_steps} steps x {vision_batch} images x 2 processes): entity, colour, scene,
   direction and place from a frame's mean visual token, compared with the word embeddings;
   positions on a grid of 16 px that is refined to 1 px as accuracy passes
   {vision_pass:.0%}.
2. Drill (until {drill_stop:.0%} or stopped): colours and objects on 1 to 6 frames, with the
   retrieval loss.
3. General (at most {general_steps} steps): single skills first, then all kinds on clips of up to
   48 frames, slow ones of up to 96; every layer sees the frames that the retrieval score picks
   for it, the newest always among them; in most late batches the other clips' frames count as
   earlier frames, so that look-alikes compete.
4. Memory ({memory_steps} steps, decoder alone): clips as slow as real streams, mostly without the
   tokens that `last_kept` drops, frames of one token searched last, as the service does both; a
   fifth of the questions follow others in a conversation. `train --start FOLDER` runs this alone.

AdamW {vision_rate:g} (vision), {language_rate:g} (language; tower x {factor:g}),
{memory_rate:g} (memory), retrieval loss x {retrieval_weight:g}. Camera and H.264-like damage on
every frame. Seed {seed}.
{history}
## What it cannot do

- Anything outside its world and its few dozen ways of asking.
- Several objects at once, reading words, dialogue, reasoning over more than a handful of events.
- Counting and the order of events on long streams are unreliable (see the figures; naming one of
  the two objects at random gives .50 for order). Counts are mostly wrong by one, although every
  appearance is found; for order, frames of one event crowd those of the other out of the
  few that a layer may attend to. Counts beyond five were never trained.
"""


def model_card(
    *, recipe: Mapping[str, Any], seed: int, parameters: int, recommended: Mapping[str, Any],
    tokens_per_frame: int, figures: Sequence[Figure], history: str = "",
) -> str:  # fmt: skip
    """The card as Markdown.

    Args:
        recipe: Fields of the Recipe that was run.
        seed: Its seed.
        parameters: Number of weights.
        recommended: Content of lookback.json.
        tokens_per_frame: Visual tokens of a frame.
        figures: Measured accuracies.
        history: How the run differed from one uninterrupted run, if it did.
    """
    return _TEXT.format(
        millions=parameters / 1e6, parameters=parameters, tokens=tokens_per_frame,
        prefix=words.PREFIX_TEXT, tail=words.TAIL_TEXT,
        window_tokens=recommended["window_tokens"], retrieved=recommended["retrieved_units"],
        entity_count=len(words.ENTITIES), entities=", ".join(words.ENTITIES),
        colour_count=len(words.COLOURS), colours=", ".join(words.COLOURS),
        scene_count=len(words.SCENES), scenes=", ".join(words.SCENES),
        crf=_codec(figures), context=_context(figures),
        tables=_tables(figures), kinds=", ".join(KINDS),
        vision_steps=recipe["vision_steps"], vision_batch=recipe["vision_batch"],
        vision_pass=recipe["vision_pass_fraction"], drill_stop=recipe["drill_stop_fraction"],
        general_steps=recipe["general_steps"], vision_rate=recipe["vision_rate"],
        language_rate=recipe["language_rate"], factor=recipe["vision_rate_factor"],
        memory_steps=recipe["memory_steps"], memory_rate=recipe["memory_rate"],
        retrieval_weight=recipe["retrieval_weight"], seed=seed,
        history=f"\n{history.strip()}\n" if history.strip() else "",
    )  # fmt: skip


def _codec(figures: Sequence[Figure]) -> str:
    crfs = sorted({f["crf"] for f in figures if f["crf"] is not None})
    if not crfs:
        return "no codec"
    return "frames through H.264 at crf " + ", ".join(map(str, crfs))


def _context(figures: Sequence[Figure]) -> str:
    pairs = sorted({(f["retrieved"], f["recent"]) for f in figures})
    return "; ".join(f"{a} retrieved frames and the newest {b}" for a, b in pairs) or "not measured"


def _tables(figures: Sequence[Figure]) -> str:
    durations = sorted({f["duration_s"] for f in figures})
    kinds = list(dict.fromkeys(f["kind"] for f in figures))
    lines = ["| kind | " + " | ".join(f"{d:g} s" for d in durations) + " |"]
    lines.append("|---" * (len(durations) + 1) + "|")
    for kind in kinds:
        cells = []
        for duration_s in durations:
            found = [f for f in figures if f["kind"] == kind and f["duration_s"] == duration_s]
            cells.append(_cell(found[0]) if found else "")
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    lines.append("")
    lines.append("Cells: exact / option / hit (questions).")
    return "\n".join(lines)


def _cell(figure: Figure) -> str:
    hit = "-" if figure["hit"] is None else f"{figure['hit']:.2f}"
    return f"{figure['exact']:.3f} / {figure['option']:.3f} / {hit} ({figure['n']})"
