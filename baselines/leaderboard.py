"""From the folders of runs to the leaderboard's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from baselines.collected import collect
from baselines.figures import learning, profiles
from baselines.page import page_text
from baselines.plans import portable
from baselines.standings import aggregate, standings
from baselines.table import as_table, markdown, unfinished
from mf_taxi_env.atomic import replacing
from mf_taxi_env.render import save_figure
from safe_m3_agent.figures.drawing import Drawing, save_drawing, save_table

PAGE_FILE, TABLE_FILE = "leaderboard.md", "leaderboard.csv"
#: Beside a page of the documentation: its pictures.
IMAGES = "images"


def make_leaderboard(
    folders: Sequence[Path], out: Path, page: Path | None, formats: Sequence[str], notes: Path | None = None
) -> str:
    """Write ``leaderboard.md``, ``leaderboard.csv``, and pictures with their numbers.

    Args:
        folders: Folders of the benchmark.
        out: Where to write; made where it is missing.
        page: A page to write as well, with PNG pictures in a folder beside it; None for none.
        formats: Formats of the pictures in ``out``.
        notes: Remarks in Markdown that follow the page's introduction; None for none.

    Returns:
        What a person wants to see at once: the tables, what does not count, and the files.

    Raises:
        ValueError: If there are no runs or formats, a file is not readable, or runs do not go together.
        BoundExceededError: If a final policy that keeps the constraints earned more than is possible.
        OSError: If a file cannot be written, or the notes cannot be read.
    """
    if not formats:
        raise ValueError("formats must name at least one of png, pdf, svg, got none")
    remarks = notes.read_text(encoding="utf-8") if notes is not None else ""
    sections = collect(folders)
    ranked = {section.name: standings(section) for section in sections}
    overall = aggregate(sections)
    drawings = {section.name: learning(section, ranked[section.name]) for section in overall.sections}
    # Levels of scores make sense where every algorithm has met every city.
    compared = ranked[overall.sections[0].name] if len(overall.sections) == 1 else overall.standings
    if compared:
        drawings["profiles"] = profiles(overall.sections, compared)
    out.mkdir(parents=True, exist_ok=True)
    every = [one for section in sections for one in ranked[section.name]] + overall.standings
    files = [save_table(as_table(every), out / TABLE_FILE)]
    for name, drawing in drawings.items():
        files += save_drawing(drawing, out, name, formats)
    images = {name: f"{name}.{formats[0]}" for name in drawings}
    named = {"--page": page, "--notes": notes}
    options = [word for name, file in named.items() if file is not None for word in (name, portable(str(file)))]
    text = page_text(sections, ranked, overall, images, notes=remarks, options=options)
    files.append(_write(out / PAGE_FILE, text))
    if page is not None:
        images = _save_images(drawings, page.parent / IMAGES)
        text = page_text(sections, ranked, overall, images, in_docs=True, notes=remarks, options=options)
        files.append(_write(page, text))
    tables = [f"{section.name}\n{markdown(ranked[section.name])}" for section in overall.sections]
    if overall.standings:
        tables.append(f"all cities\n{markdown(overall.standings)}")
    if overall.reason:
        tables.append(f"No table of all cities: {overall.reason}")
    if left := unfinished(sections):
        tables.append("Without a result:\n" + "\n".join(f"  {line}" for line in left))
    return "\n\n".join([*tables, "\n".join(map(str, files))])


def _save_images(drawings: dict[str, Drawing], folder: Path) -> dict[str, str]:
    """Pictures of a page, by its links to them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawing in drawings.items():
        save_figure(drawing.figure, folder / f"leaderboard-{name}.png")
    return {name: f"{folder.name}/leaderboard-{name}.png" for name in drawings}


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
