"""How many questions rooms give, how their answers spread, and how far guessing gets: one row a
task."""
from collections import Counter
from collections.abc import Sequence

from scenes.clip import Clip
from scenes.questions.baselines import Majority, TextOnly, best_constant
from scenes.questions.metrics import mra
from scenes.questions.question import TASKS, Question, questions
from scenes.questions.scoring import summary
from scenes.questions.visibility import SceneView

Row = dict[str, float | int | str]
_HEADLINE = {"ground": "acc@0.25", "multi_ground": "f1@0.25", "caption": "cider", "situated": "em"}


def question_statistics(training: Sequence[Question], held_out: Sequence[Question], rooms: int,
           held_out_rooms: int) -> list[Row]:
    """Per task: questions per 100 rooms, and on the held-out rooms what `Majority` and `TextOnly`
    score.

    "constant" is the score of the best single answer chosen on the held-out questions themselves:
    no constant does better. Shares of "kinds" are of the training questions.
    """
    rows: list[Row] = []
    for task in TASKS:
        known, asked = [q for q in training
                        if q.task == task], [q for q in held_out if q.task == task]
        row: Row = {
            "task": task, "rooms": rooms, "questions": len(known),
            "per_100_rooms": 100 * len(known) / rooms, "held_out_rooms": held_out_rooms,
            "held_out_questions": len(asked)
        }
        kinds = Counter(q.kind for q in known if q.kind)
        row |= {f"share/{kind}": count / len(known) for kind, count in sorted(kinds.items())}
        if known and asked:
            metric = _HEADLINE.get(task, "mra" if asked[0].number is not None else "accuracy")
            row |= {"metric": metric, "chance": _chance(asked)}
            for name, baseline in (("majority", Majority(known)), ("text_only", TextOnly(known))):
                row[name] = summary(asked, [baseline.output(q) for q in asked])[task][metric]
            if asked[0].number is not None:
                numbers = [q.number for q in asked if q.number is not None]
                row["constant"] = sum(mra(best_constant(numbers), n)
                                      for n in numbers) / len(numbers)
        rows.append(row)
    return rows


def _chance(asked: Sequence[Question]) -> float | str:
    """Expected score of a uniform guess, where there is something to guess among."""
    if asked[0].options:
        return sum(1 / len(q.options) for q in asked) / len(asked)
    if asked[0].task == "ground":
        return sum(1 / len(q.offered) for q in asked) / len(asked)
    return ""


def print_questions(clip: Clip, tasks: Sequence[str], seed: int) -> None:
    """Task, question, options and answer; for boxes, what is in them."""
    view = SceneView(clip)
    asked = [question for task in tasks for question in questions(view, task, seed)]
    print(
        f"{clip.id} shows "
        f"{', '.join(f'{len(g)} {noun}' for noun, g in sorted(view.by_noun.items())) or 'nothing'}"
    )
    for question in asked:
        print(f"\n{question.task}{' (' + question.kind + ')' if question.kind else ''}")
        print("  " + question.text.replace("\n", "\n  "))
        for option in question.options:
            print(f"    {option}")
        for answer in _answers(question, view):
            print(f"  -> {answer}")


def _answers(question: Question, view: SceneView) -> list[str]:
    where = [
        f"{view.objects[i].noun} at " + "({:.1f}, {:.1f}, {:.1f}) m".format(*question.boxes[i, :3])
        for i in question.targets
    ]
    if question.task in ("ground", "multi_ground"):
        return where or ["none of them"]
    return [*where, *(question.answers or (question.answer or "",))]
