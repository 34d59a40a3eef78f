"""Per task: how many questions rooms give, and what baselines that see no frames score."""
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
    """A row a task: questions per 100 rooms, and the held-out scores of `Majority`, of `TextOnly`
    and of the best single answer ("constant")."""
    rows = []
    for task in TASKS:
        train = [q for q in training if q.task == task]
        test = [q for q in held_out if q.task == task]
        row: Row = {"task": task, "rooms": rooms, "questions": len(train),
                    "per_100_rooms": 100 * len(train) / rooms,
                    "held_out_rooms": held_out_rooms, "held_out_questions": len(test)}
        kinds = Counter(q.kind for q in train if q.kind)
        row |= {f"share/{kind}": count / len(train) for kind, count in sorted(kinds.items())}
        if train and test:
            row |= _baseline_scores(task, train, test)
        rows.append(row)
    return rows


def describe(row: Row) -> str:
    """One line of a row: the task, its questions and the baselines' scores."""
    names = [k for k in ("chance", "majority", "text_only", "constant") if row.get(k)]
    baselines = "  ".join(f"{k} {row[k]:.3f}" for k in names)
    return (f"{row['task']:<34} {row['per_100_rooms']:5.0f} per 100 rooms  "
            f"{row.get('metric', ''):<9} {baselines}")


def print_questions(clip: Clip, tasks: Sequence[str], seed: int) -> None:
    """Task, question, options and answer; for boxes, what is in them."""
    view = SceneView(clip)
    counts = [f"{len(group)} {noun}" for noun, group in sorted(view.by_noun.items())]
    print(f"{clip.id} shows {', '.join(counts) or 'nothing'}")
    for question in (question for task in tasks for question in questions(view, task, seed)):
        print(f"\n{question.task}{' (' + question.kind + ')' if question.kind else ''}")
        print("  " + question.text.replace("\n", "\n  "))
        for option in question.options:
            print(f"    {option}")
        for answer in _answers(question, view):
            print(f"  -> {answer}")


def _baseline_scores(task: str, train: list[Question], test: list[Question]) -> Row:
    numeric = test[0].number is not None
    metric = _HEADLINE.get(task, "mra" if numeric else "accuracy")
    row: Row = {"metric": metric, "chance": _chance(test)}
    for name, baseline in (("majority", Majority(train)), ("text_only", TextOnly(train))):
        row[name] = summary(test, [baseline.output(q) for q in test])[task][metric]
    if numeric:
        numbers = [q.number for q in test if q.number is not None]
        row["constant"] = sum(mra(best_constant(numbers), n) for n in numbers) / len(numbers)
    return row


def _chance(test: Sequence[Question]) -> float | str:
    """Expected score of a uniform guess among options or boxes; "" for other answers."""
    if not test[0].options and test[0].task != "ground":
        return ""
    return sum(1 / len(q.options or q.offered) for q in test) / len(test)


def _answers(question: Question, view: SceneView) -> list[str]:
    positions = []
    for i in question.targets:
        x, y, z = question.boxes[i, :3]
        positions.append(f"{view.objects[i].noun} at ({x:.1f}, {y:.1f}, {z:.1f}) m")
    if question.task in ("ground", "multi_ground"):
        return positions or ["none of them"]
    return [*positions, *(question.answers or (question.answer or "",))]
