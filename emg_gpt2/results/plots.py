"""The interactive plots of a report (plotly)."""

from collections.abc import Sequence
from html import escape

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emg_gpt2.results.figures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    accuracy_limits,
    axis_note,
    chosen_words,
    percent,
)
from emg_gpt2.results.reading import FinishedRun

COLOURS, DASHES = (BLUE, ORANGE, GREEN, GREY), ("solid", "dash", "dot", "dashdot")
BLUES = [[0, "#ffffff"], [1, BLUE]]
CELL, LARGEST_NAME = 38, 16  # pixels of a class in the matrix; letters of a name at an axis
DARK = 93  # %: from there on white letters are more legible on BLUES than black ones
AXES = {"validation_loss": "cross entropy (nat)", "validation_balanced_accuracy": "balanced accuracy"}


def loss_curves(run: FinishedRun) -> go.Figure:
    """Loss over the epochs of both trainings."""
    figure = _plot("epoch", "cross entropy (nat)", _epochs(len(run.history)))
    _curve(figure, run.history, "train_loss", "training, as optimised", GREY, "solid", "circle")
    _curve(figure, run.history, "validation_loss", "validation", BLUE, "dash", "square")
    _second_training(figure, run, "train_loss")
    _mark_epoch(figure, run.metrics.get("best_epoch"))
    return figure.update_yaxes(rangemode="tozero")


def accuracy_curves(run: FinishedRun) -> go.Figure:
    """Accuracies over the epochs of both trainings; the linear path alone and chance, both balanced, as lines."""
    figure = _plot("epoch", "accuracy", _epochs(len(run.history)))
    _curve(figure, run.history, "train_accuracy", "training", GREY, "solid", "circle")
    _curve(figure, run.history, "validation_accuracy", "validation", BLUE, "dash", "square")
    _curve(figure, run.history, "validation_balanced_accuracy", "validation, balanced", ORANGE, "solid", "diamond")
    _second_training(figure, run, "train_accuracy")
    _mark_epoch(figure, run.metrics.get("best_epoch"))
    others = []
    if alone := (run.metrics.get("linear_path") or {}).get("validation_balanced_accuracy"):
        _level(figure, alone, f"linear path alone, validation, balanced {alone:.3f}", "dashdot")
        others.append(alone)
    low = _show_differences(figure, others)
    outside = " (outside the axis)" * (run.chance < low)
    _level(figure, run.chance, f"chance, balanced {run.chance:.3f}{outside}", "dot")
    return figure.update_layout(height=390)


def _show_differences(figure: go.Figure, others: list[float]) -> float:
    """Let the axis of y show what the curves and `others` differ by; returns where it begins, which its title says."""
    low, high = accuracy_limits([value for curve in figure.data for value in curve.y] + others)
    title = figure.layout.yaxis.title.text
    figure.update_yaxes(range=[low, high], title_text=f"{title}{axis_note(low)}")
    return low


def _second_training(figure: go.Figure, run: FinishedRun, column: str) -> None:
    """One column of the second training's history, where there was one."""
    if run.second_history is not None:
        name = "second training, with validation"
        _curve(figure, run.second_history, column, name, GREEN, "dot", "triangle-up-open")


def _level(figure: go.Figure, height: float, name: str, dash: str) -> None:
    """A horizontal line."""
    line = {"color": BLACK, "width": 1, "dash": dash}
    figure.add_hline(height, line=line, name=name, showlegend=True)


def overlaid_curves(histories: dict[str, pd.DataFrame], column: str) -> go.Figure:
    """One column of history.csv over the epochs, for several runs by name."""
    figure = _plot("epoch", AXES[column], _epochs(max(map(len, histories.values()), default=1)))
    for number, (name, history) in enumerate(histories.items()):
        dash = DASHES[number // len(COLOURS) % len(DASHES)]
        _curve(figure, history, column, escape(name), COLOURS[number % len(COLOURS)], dash, "circle")
    if column == "validation_balanced_accuracy" and figure.data:
        _show_differences(figure, [])
    return figure.update_layout(showlegend=True).update_yaxes(rangemode="tozero")


def confusion_matrix(counts: Sequence[Sequence[int]], names: list[str]) -> go.Figure:
    """counts[i][j] windows of class i were predicted to be class j: cells show the share of class i, in %."""
    shares = [[100 * count / max(sum(row), 1) for count in row] for row in counts]
    about = [
        [[escape(true), escape(predicted), count] for predicted, count in zip(names, row, strict=True)]
        for true, row in zip(names, counts, strict=True)
    ]
    hover = "%{customdata[0]}, predicted %{customdata[1]}:<br>%{customdata[2]} windows, %{z:.1f} %<extra></extra>"
    looks = {"colorscale": BLUES, "zmin": 0, "zmax": 100, "xgap": 1, "ygap": 1, "showscale": False}
    figure = _plot("predicted gesture", "true gesture", {})
    figure.add_trace(go.Heatmap(z=shares, customdata=about, hovertemplate=hover, **looks))
    figure.add_trace(_cell_texts(counts))
    ticks = {"tickvals": list(range(len(names))), "ticktext": [escape(_shortened(name)) for name in names]}
    figure.update_xaxes(ticks, showgrid=False, tickangle=-45)
    figure.update_yaxes(ticks, showgrid=False, autorange="reversed")
    return figure.update_layout(height=CELL * len(names) + 150)


def _cell_texts(counts: Sequence[Sequence[int]]) -> go.Scatter:
    """The text of each cell, black on light and white on dark."""
    cells = [(x, y, n, sum(row)) for y, row in enumerate(counts) for x, n in enumerate(row) if n]
    x, y, _, _ = zip(*cells, strict=True) if cells else ((), (), (), ())
    texts = [escape(percent(count, total)) for _, _, count, total in cells]
    dark = [100 * count > DARK * total for _, _, count, total in cells]
    font = {"size": 11, "color": ["white" if one else "black" for one in dark]}
    return go.Scatter(x=x, y=y, text=texts, mode="text", textfont=font, hoverinfo="skip", showlegend=False)


def reliability(bins: pd.DataFrame) -> go.Figure:
    """Accuracy over mean confidence of each bin (`tables.calibration`) with its interval, and its windows below."""
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.75, 0.25], vertical_spacing=0.06)
    _style(figure, "", "", {})
    line = {"color": GREY, "dash": "dash", "width": 1}
    ideal = {"name": "confidence = accuracy", "mode": "lines", "line": line, "hoverinfo": "skip"}
    figure.add_trace(go.Scatter(ideal, x=[0, 1], y=[0, 1]), 1, 1)
    accuracy, error = bins["accuracy"], {"color": BLUE, "thickness": 1.2, "width": 4}
    error |= {"array": (bins["top"] - accuracy).tolist(), "arrayminus": (accuracy - bins["bottom"]).tolist()}
    points = {"name": "accuracy, 95 % interval", "mode": "markers", "marker": {"color": BLUE, "size": 8}}
    points |= {"error_y": error | {"symmetric": False}}
    hover = "%{customdata} windows: accuracy %{y:.3f},<br>mean confidence %{x:.3f}<extra></extra>"
    points |= {"customdata": bins["windows"].tolist(), "hovertemplate": hover}
    figure.add_trace(go.Scatter(points, x=bins["confidence"].tolist(), y=accuracy.tolist()), 1, 1)
    middle, width = (bins["low"] + bins["high"]) / 2, 0.92 * (bins["high"] - bins["low"])
    looks = {"marker_color": GREY, "hovertemplate": "%{y} windows<extra></extra>", "showlegend": False}
    looks |= {"text": bins["windows"].tolist(), "textposition": "outside", "textfont": {"size": 10}}
    places = {"x": middle.tolist(), "y": bins["windows"].tolist(), "width": width.tolist()}
    figure.add_trace(go.Bar(places | looks, cliponaxis=False), 2, 1)
    figure.update_xaxes(range=[0, 1.02]).update_xaxes(title_text="confidence", row=2)
    figure.update_yaxes(title_text="accuracy", range=[-0.02, 1.04], row=1)
    figure.update_yaxes(title_text="windows", range=[0, 1.3 * float(bins["windows"].max())], row=2)
    return figure.update_layout(height=440)


def _plot(x: str, y: str, x_axis: dict) -> go.Figure:
    return _style(go.Figure(), x, y, x_axis)


def _style(figure: go.Figure, x: str, y: str, x_axis: dict) -> go.Figure:
    """Give a plot the looks that all have in common."""
    axis = {
        "gridcolor": PALE,
        "linecolor": GREY,
        "zeroline": False,
        "automargin": True,
        "ticks": "outside",
        "tickcolor": GREY,
    }
    figure.update_layout(
        template="none",
        height=330,
        margin={"l": 50, "r": 12, "t": 30, "b": 44},
        paper_bgcolor="white",
        font={"family": "system-ui, sans-serif", "size": 12, "color": BLACK},
        hoverlabel={"font": {"size": 13}},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        bargap=0,
    )
    return figure.update_xaxes(axis, title_text=x, title_standoff=10, **x_axis).update_yaxes(
        axis, title_text=y, title_standoff=10
    )


def _epochs(count: int) -> dict:
    """An axis with at most ten whole numbers."""
    return {"range": [0.5, count + 0.5], "dtick": -(-count // 10), "tick0": 1}


def _curve(
    figure: go.Figure, history: pd.DataFrame, column: str, name: str, colour: str, dash: str, symbol: str
) -> None:
    """Add a column of a history, unless an older run lacks it."""
    if column in history:
        looks = {"line": {"color": colour, "dash": dash}, "marker": {"symbol": symbol, "size": 7}}
        values = {"x": history["epoch"].tolist(), "y": history[column].tolist()}
        hover = "epoch %{x}: %{y:.3f}"
        figure.add_trace(go.Scatter(values, mode="lines+markers", name=name, hovertemplate=hover, **looks))


def _mark_epoch(figure: go.Figure, epoch: int | None) -> None:
    """Mark the chosen epoch, unless an older run does not say which it was."""
    if epoch is not None:
        line = {"color": ORANGE, "width": 2, "dash": "dot"}
        figure.add_vline(epoch, line=line, name=chosen_words(epoch), showlegend=True)


def _shortened(name: str) -> str:
    return name if len(name) <= LARGEST_NAME else name[: LARGEST_NAME - 1] + "…"
