"""The tables and the figure of what speed.py measured."""

from cases import LOG_PX_ROW
from matplotlib.figure import Figure
from tabulate import tabulate

COLUMNS = ("stock Pyro", "plain PyTorch", "NumPyro", "ours eager", "ours", "floor")


def report(results: dict, tablefmt: str) -> str:
    """Returns the tables of the results, with a line above each."""
    lines, ratios, checks = [], [], []
    for row in results["rows"]:
        ms = row["ms"]
        lines.append([row["row"], *(f"{ms[c]:.2f}" if c in ms else "-" for c in COLUMNS)])
        times = [f"{ms[c] / ms['ours']:.2f}" if c in ms else "-" for c in COLUMNS[:3]]
        of_floor = f"{ms['ours'] / ms['floor']:.2f}" if "floor" in ms else "-"
        ratios.append([row["row"], *times, of_floor])
        differences = (f"{row[name]:.1e}" for name in ("loss_difference", "gradient_difference"))
        checks.append([row["row"], *differences, f"{row['compile_seconds']:.1f}"])
    if "log_px" in results:
        rate = results["log_px"]
        lines.append([f"{LOG_PX_ROW}, thousand decodes/s", *(f"{rate[c]:.0f}" if c in rate else "-" for c in COLUMNS)])
        plain, floors = rate["ours"] / rate["plain PyTorch"], rate["floor"] / rate["ours"]
        ratios.append([LOG_PX_ROW, "-", f"{plain:.2f}", "-", f"{floors:.2f}"])

    def table(lines: list, header: list) -> str:
        return tabulate(lines, header, tablefmt, disable_numparse=True)

    parts = [f"{results['machine']}, {results['threads']} threads; ms per step, medians"]
    if lines:
        parts.append(table(lines, ["", *COLUMNS]))
        parts += ["How many times faster ours is, and its time in floors", table(ratios, ["", *COLUMNS[:3], "floors"])]
    if checks:
        parts.append("Largest relative difference of the columns on the same noise; seconds of the first compilation")
        parts.append(table(checks, ["", "loss", "gradient", "compilation, s"]))
    if "epochs" in results:
        of_fit = [(row["row"], row["ms"]["fit"], row["ms"].get("NumPyro")) for row in results["epochs"]]
        parts.append("Epochs of `fit` beside a scan over an epoch by NumPyro, ms per step")
        shown = [[n, f"{f:.2f}", *(["-", "-"] if s is None else [f"{s:.2f}", f"{s / f:.2f}"])] for n, f, s in of_fit]
        parts.append(table(shown, ["", "fit", "NumPyro", "times faster"]))
    if "objectives" in results:
        ms = results["objectives"]
        parts.append("Compiled steps of the objectives, 16 draws of z in each")
        parts.append(table([[n, f"{t:.1f}", f"{t / ms['elbo']:.2f}"] for n, t in ms.items()], ["", "ms", "ELBOs"]))
    if "full" in results:
        full = results["full"]
        seconds, memory = f"{full['seconds']:.0f} s", f"peak memory {full['peak_gigabytes']:.2f} GB"
        parts.append(f"log p(x) of 10,000 images with {full['num_samples']:,} samples: {seconds}, {memory}")
    return "\n\n".join(parts)


def draw(results: dict) -> Figure:
    """Draws bars: the time of each column in units of ours, for steps and for log p(x)."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    columns = [c for c in COLUMNS if c != "ours"]
    names = [row["row"].replace(", ", "\n", 1) for row in results["rows"]]
    relative = [{c: ms / row["ms"]["ours"] for c, ms in row["ms"].items()} for row in results["rows"]]
    if "log_px" in results:
        rate = results["log_px"]
        names.append(LOG_PX_ROW)
        relative.append({c: rate["ours"] / value for c, value in rate.items()})
    for index, column in enumerate(columns):
        shown = [(place, values[column]) for place, values in enumerate(relative) if column in values]
        places = [place + 0.16 * (index - 2) for place, _ in shown]
        # A bar that points up is slower than ours.
        axes.bar(places, [value - 1 for _, value in shown], 0.15, bottom=1, label=column)
    axes.axhline(1, color="black", linewidth=1, label="ours")
    axes.set_xticks(range(len(names)), names)
    axes.set_yscale("log")
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylabel("time / time of ours")
    axes.legend(ncols=3)
    return figure
