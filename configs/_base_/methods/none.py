# The student alone.
method = None
