"""Draws memory over the events of recorded programs; read from standard input: `panel TITLE`, and below it
a line a point with event, bytes held, allocated and asked for. The argument names the picture."""

import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

panels = []
for line in sys.stdin:
    if line.startswith("panel "):
        panels.append((line[len("panel "):].strip(), []))
    else:
        panels[-1][1].append([int(word) for word in line.split()])
figure, axes = pyplot.subplots(len(panels), figsize=(10, 3.2 * len(panels)), squeeze=False)
for (title, points), axis in zip(panels, axes[:, 0]):
    events = [point[0] for point in points]
    for column, (name, colour) in enumerate((("held", "#c23b22"), ("allocated", "#e0a030"), ("asked for", "#2060a0")), 1):
        axis.plot(events, [point[column] / 2**20 for point in points], colour, label=name, linewidth=1)
    axis.set_title(title, loc="left")
    axis.set(xlabel="events", ylabel="MiB", ylim=(0, None))
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncol=3, frameon=False)
figure.tight_layout()
figure.savefig(sys.argv[1])
