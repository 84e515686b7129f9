"""Exercises of 02_swin: a solution of each, and a plausible wrong answer."""

solution_1 = (16, 4, 1, 1)
wrong_1 = (4, 2, 1, 1)  # windows a side

solution_2 = 8 * 128 * 3 * 32**2 + 3 * 32**2
wrong_2 = 8 * 128 * 3 * 32**2  # without the bias


def solution_3(x, window):
    height, width, channels = x.shape
    x = x.reshape(height // window, window, width // window, window, channels)
    return x.transpose(0, 2, 1, 3, 4).reshape(-1, window * window, channels)


def wrong_3(x, window):
    """Reshape alone."""
    return x.reshape(-1, window * window, x.shape[-1])
