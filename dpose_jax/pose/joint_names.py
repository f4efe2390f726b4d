"""What the names of joints say: side, part of the body, partner in a mirrored image."""

import re

from dpose_jax.pose.joint_sets import COCO, CROWDPOSE, JointSet, Pair

_SIDES = {"left": "l", "l": "l", "right": "r", "r": "r"}
# A word of a side that another follows without a mark: leftElbow, LElbow, leftelbow.
_JOINED = re.compile(r"^([lL]eft|[rR]ight|[LR](?=[A-Z][a-z]))(?=[A-Za-z])|(?<=[a-z0-9])(?=[A-Z])")
_LOWER = frozenset(("hip", "knee", "ankle", "heel", "toe", "foot", "leg", "thigh", "shin"))
GUESSED_SIGMA = 0.05  # (ours): between COCO's for the eyes, .025, and the hips, .107


def side_and_part(name: str) -> tuple[str, str]:
    """The side of a name, "l", "r" or "", and the rest in lower case: ("l", "hand") of `left_hand` and `hand.L`."""
    words = [word for word in re.split(r"[^a-z0-9]+", _JOINED.sub(r"\1_", name).lower()) if word]
    place = next((i for i, word in enumerate(words) if word in _SIDES), None)
    if place is None:
        return "", "_".join(words)
    return _SIDES[words[place]], "_".join(words[:place] + words[place + 1 :])


def pairs_by_name(names: tuple[str, ...]) -> tuple[Pair, ...]:
    """Index pairs (left, right) of names that differ in their side alone."""
    places: dict[tuple[str, str], int] = {}
    for place, name in enumerate(names):
        places.setdefault(side_and_part(name), place)
    lefts = ((part, place) for (side, part), place in places.items() if side == "l")
    return tuple((place, places["r", part]) for part, place in lefts if ("r", part) in places)


def left_first(joint_set: JointSet) -> list[Pair]:
    """The flip pairs, the left joint first where a name says a side; others as they stand."""
    place = {"l": 0, "": 1, "r": 2}
    by_side = [place[side_and_part(name)[0]] for name in joint_set.joints]
    return [(b, a) if by_side[a] > by_side[b] else (a, b) for a, b in joint_set.flip_pairs]


def odd_pairs(joint_set: JointSet) -> list[str]:
    """Sentences on flip pairs that contradict the joints' names, such as left_hand with left_elbow."""
    found, names = [], joint_set.joints
    for a, b in joint_set.flip_pairs:
        (side, part), (other_side, other_part) = side_and_part(names[a]), side_and_part(names[b])
        if (side or other_side) and (side == other_side or not side or not other_side or part != other_part):
            found.append(f"{names[a]!r} and {names[b]!r} are a flip pair")
    paired = {frozenset(pair) for pair in joint_set.flip_pairs}
    for a, b in pairs_by_name(names):
        if frozenset((a, b)) not in paired:
            found.append(f"{names[a]!r} and {names[b]!r} are no flip pair")
    return found


def suggested(
    name: str, joints: tuple[str, ...], limbs: tuple[Pair, ...], flip_pairs: tuple[Pair, ...] | None = None
) -> tuple[JointSet, list[str]]:
    """A joint set of names and limbs, and sentences on what to check in it; ValueError as JointSet.

    Without `flip_pairs` they come from the names. Sigmas are COCO's and CrowdPose's of the same part, otherwise
    GUESSED_SIGMA. The upper body is all but hips and legs, where a hip, knee or ankle is named.
    """
    parts = [side_and_part(joint)[1] for joint in joints]
    known: dict[str, float] = {"head": CROWDPOSE.sigmas[12], "head_top": CROWDPOSE.sigmas[12]}
    for each in (CROWDPOSE, COCO):
        known |= {side_and_part(joint)[1]: sigma for joint, sigma in zip(each.joints, each.sigmas, strict=True)}
    sigmas = tuple(known.get(part, GUESSED_SIGMA) for part in parts)
    lower = [bool(_LOWER & set(part.split("_"))) for part in parts]
    upper = tuple(j for j, low in enumerate(lower) if not low) if any(lower) else ()
    pairs = pairs_by_name(joints) if flip_pairs is None else flip_pairs
    joint_set = JointSet(name, joints, limbs, pairs, sigmas, upper)
    notes = [f"flip_pairs: {odd}; check" for odd in odd_pairs(joint_set)]
    if not pairs:
        notes.append("flip_pairs: none; if joints have sides, add pairs, or set augment.flip=0 and eval.flip=False")
    paired = {j for pair in pairs for j in pair}
    alone = [joint for j, joint in enumerate(joints) if j not in paired and side_and_part(joint)[0]]
    if alone:
        notes.append(f"flip_pairs: {', '.join(alone)} have a side and no partner")
    if not limbs:
        notes.append("limbs: none, so the mask of limbs is empty; add pairs of indices from 0")
    guessed = [joint for joint, part in zip(joints, parts, strict=True) if part not in known]
    if guessed:
        notes.append(
            f"sigmas: {GUESSED_SIGMA} is a guess for {', '.join(guessed)}. Label some persons twice: sigma is the root "
            "mean square of (distance / sqrt(area)); it changes OKS and AP alone, not training"
        )
    return joint_set, notes
