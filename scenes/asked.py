"""A clip's questions on the terminal."""
from collections.abc import Sequence

from scenes.clip import Clip
from scenes.questions import Question, questions
from scenes.seen import View


def print_questions(clip: Clip, tasks: Sequence[str], seed: int) -> None:
    """Task, question, options and answer; for boxes, what is in them."""
    view = View(clip)
    asked = [question for task in tasks for question in questions(view, task, seed)]
    print(f"{clip.id} shows {', '.join(f'{len(g)} {noun}' for noun, g in sorted(view.groups.items())) or 'nothing'}")
    for question in asked:
        print(f"\n{question.task}{' (' + question.kind + ')' if question.kind else ''}")
        print("  " + question.text.replace("\n", "\n  "))
        for option in question.options:
            print(f"    {option}")
        for answer in _answers(question, view):
            print(f"  -> {answer}")


def _answers(question: Question, view: View) -> list[str]:
    where = [f"{view.things[i].noun} at " + "({:.1f}, {:.1f}, {:.1f}) m".format(*question.boxes[i, :3])
             for i in question.targets]
    if question.task in ("ground", "multi_ground"):
        return where or ["none of them"]
    return [*where, *(question.answers or (question.answer or "",))]
