"""Flags of the outputs that a method reads."""

import enum


class Requires(enum.Flag):
    """Inputs of a method; the distiller computes these and no others.

    Members are combined by ``|``, as in ``Requires.FEATURES | Requires.TEACHER_LOGITS``. In
    detection features are levels that both networks have: ``FEATURES``, not of one alone.
    """

    NOTHING = 0
    STUDENT_FEATURES = enum.auto()
    TEACHER_FEATURES = enum.auto()
    STUDENT_LOGITS = enum.auto()
    TEACHER_LOGITS = enum.auto()
    # Of both networks.
    EMBEDDING = enum.auto()
    # Place of each image in the data set; classification only.
    INDICES = enum.auto()
    # ``forward_prompted`` of the teacher.
    PROMPTS = enum.auto()
    FEATURES = STUDENT_FEATURES | TEACHER_FEATURES
    LOGITS = STUDENT_LOGITS | TEACHER_LOGITS
