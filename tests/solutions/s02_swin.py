"""Exercises of 02_swin: a solution of each, and a plausible wrong answer."""


def solution_1():
    return 16, 4, 1, 1


def wrong_1():
    """Windows a side."""
    return 4, 2, 1, 1


def solution_2():
    return 8 * 128 * 3 * 32**2 + 3 * 32**2


def wrong_2():
    """Without the bias."""
    return 8 * 128 * 3 * 32**2


def solution_3():
    def partition(x, window):
        height, width, channels = x.shape
        x = x.reshape(height // window, window, width // window, window, channels)
        return x.transpose(0, 2, 1, 3, 4).reshape(-1, window * window, channels)

    return partition


def wrong_3():
    """Reshape alone."""

    def partition(x, window):
        return x.reshape(-1, window * window, x.shape[-1])

    return partition
