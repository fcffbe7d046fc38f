"""Training steps, watched from outside."""

from types import SimpleNamespace


def observe_step(model, data):
    """Runs a step in loss mode.

    Gives its losses, the arguments of the method and, of PAT, the outputs of the prompted teacher.
    """
    step = SimpleNamespace()
    forward = model.distill.forward

    def observe(student, teacher, frozen_teacher):
        def forward_prompted(*args, **kwargs):
            step.prompted = frozen_teacher.forward_prompted(*args, **kwargs)
            return step.prompted

        step.student, step.teacher, step.frozen_teacher = student, teacher, frozen_teacher
        return forward(student, teacher, SimpleNamespace(forward_prompted=forward_prompted))

    model.distill.forward = observe
    try:
        step.losses = model(**data, mode="loss")
    finally:
        del model.distill.forward
    return step
