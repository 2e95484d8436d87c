"""The report page: schema, figures, escaping, honesty about simulation, atomic and equal bytes."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from harness import report_numbers as numbers
from harness import report_page
from harness.errors import DocumentError
from harness.report import (
    ArtifactReport,
    BoardLatency,
    BoardReport,
    CostFit,
    Failure,
    HeldOutPoint,
    LatencyPoint,
    Network,
    Proof,
    Report,
    SearchPoint,
    StatePoint,
    Summary,
    SurrogateFit,
    Timeline,
    WidthGroup,
    read_report,
    write_report,
)
from harness.report_schema import Contender, EliteFit, dump_report, parse_report
from tests.harness.report_samples import (
    PROVENANCE,
    Elements,
    rendered,
    sample_page,
    sample_report,
    small_report,
)


def test_json_round_trip(tmp_path: Path) -> None:
    report = sample_report()
    page = write_report(tmp_path / "new" / "folder", report)
    assert page == tmp_path / "new" / "folder" / "report.html"
    assert read_report(page.with_name("report.json")) == report
    assert sorted(p.name for p in page.parent.iterdir()) == ["report.html", "report.json"]
    assert json.loads(page.with_name("report.json").read_text())["summary"]["speedup"] == 2.53


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "invalid JSON"),
        ("[]", "should be an object"),
        ('{"title": "t"}', "simulated: field required"),
        ("\xff", "invalid"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DocumentError, match=said) as caught:
        read_report(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        (("boards", 1, "board_id"), 7, r"boards\[1\]\.board_id"),
        (("boards", 0, "surprise"), 1, r"boards\[0\]\.surprise"),
        (("boards", 0, "latencies", 1, "dense_ms"), 0, "dense_ms: input should be greater than 0"),
        (("boards", 0, "latencies", 1, "dense_ci_ms"), [1], "dense_ci_ms"),
        (("summary", "accuracy_dense"), 98.6, "accuracy_dense: .* less than or equal to 1"),
        (("summary", "speedup"), "2.5", "speedup: input should be a valid number"),
        (("artifacts", 0, "state"), "maybe", "'released', 'partial', 'refused' or 'not verified'"),
        (("schema_version",), 2, "schema_version: input should be 1"),
        (("provenance", "wall_s"), float("nan"), "wall_s: input should be a finite number"),
    ],
)
def test_a_wrong_value_is_named(
    tmp_path: Path, where: tuple[str | int, ...], value: object, said: str
) -> None:
    path = tmp_path / "report.json"
    document = json.loads(dump_report(sample_report()))
    inner = document
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    path.write_text(json.dumps(document))
    with pytest.raises(DocumentError, match=said):
        read_report(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"nowhere\.json: cannot be read"):
        read_report(tmp_path / "nowhere.json")


def test_a_wrong_value_fails_where_it_is_built() -> None:
    with pytest.raises(ValidationError, match="dense_ms"):
        BoardLatency("net", dense_ms=float("nan"))


def test_page_says_and_shows_what_was_measured() -> None:
    elements = Elements(sample_page(6, True))
    text = elements.text.replace(numbers.NARROW, " ").replace("\xa0", " ")
    assert "Fleet mean 4.65 → 1.84 ms, 2.5\u00d7 faster, accuracy 98.6 % → 98.3 %." in text
    # One for the fleet, four for each network, one for each board's time.
    assert elements.count("svg") == elements.count("figure") == 1 + 2 * 4 + 6
    assert elements.count("table") == elements.count("caption") > 0
    for fact in ("4.3 %", "5 of 6", "Found as planted", "28 of 64", "ridge", "184 kB"):
        assert fact in text
    for fact in ("differs from golden by 0.031", "fleetcut check board-05", "✗ refused"):
        assert fact in text
    for drawn in ("temperature, °C", "clock, MHz", "battery, %", "candidates evaluated"):
        assert drawn in text


def test_page_is_self_contained() -> None:
    page = sample_page(6, True)
    elements = Elements(page)
    assert elements.count("script") == elements.count("link") == 0
    for tag, attributes in elements.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href"):
                assert (value or "").startswith(("#", "data:image/png")), (tag, value)
    assert not re.findall(r"url\((?!#)", page)
    assert "@import" not in page


def test_ids_are_unique_and_references_met() -> None:
    page = sample_page(6, True)
    ids = [a["id"] for _, a in Elements(page).tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {*re.findall(r'href="#([^"]+)"', page), *re.findall(r"url\(#([^)]+)\)", page)} <= {*ids}


def test_figures_follow_the_colour_scheme() -> None:
    page = sample_page(6, True)
    used = set(re.findall(r"var\((--\w+)", page))
    defined = set(re.findall(r"(--\w+):", page))
    assert {"--ink", "--muted", "--c0", "--card"} <= used <= defined


HOSTILE = "<script>alert(1)</script>\"' onload=x &amp; $x$ {{ 7*7 }} --> ]]> 板"


def test_hostile_names_are_text() -> None:
    report = sample_report()
    rename = dataclasses.replace
    hostile = rename(
        report,
        title=HOSTILE,
        notes=(HOSTILE,),
        failures=(Failure(HOSTILE, HOSTILE, HOSTILE),),
        boards=tuple(
            rename(b, board_id=f"{HOSTILE}{i}", model=HOSTILE, cluster=HOSTILE, planted=HOSTILE)
            for i, b in enumerate(report.boards)
        ),
        networks=(rename(report.networks[0], name=HOSTILE),),
        timelines=(rename(report.timelines[0], board_id=f"{HOSTILE}0"),),
    )
    page = rendered(hostile)
    elements = Elements(page)
    assert elements.count("script") == 0
    assert "<script" not in page
    assert not any(name.startswith("on") for _, a in elements.tags for name in a)
    assert f"{HOSTILE}0" in elements.text


@pytest.mark.parametrize("simulated", [True, False])
def test_simulated_is_said_iff_it_is_so(simulated: bool) -> None:
    page = sample_page(6, simulated)
    assert ("simulated" in page.lower()) is simulated
    pictures = re.findall(r"<svg .*?</svg>", page, flags=re.DOTALL)
    assert pictures
    assert all((">simulated<" in picture) is simulated for picture in pictures)


def text_beside_a_bare_network(network: Network) -> str:
    """The words of a page on that network and on one of which nothing is known."""
    report = Report(
        title="t",
        simulated=True,
        provenance=PROVENANCE,
        summary=Summary(boards=1, clusters=1),
        networks=(network, Network("bare")),
    )
    return Elements(rendered(report)).text


def test_energy_and_memory_stand_beside_latency_where_they_were_fitted() -> None:
    costs = (
        CostFit("energy_mj", "A", "additive", 32, 8, 0.031),
        CostFit("peak_rss_mb", "A", "trees", 32, 8, 0.002),
    )
    text = text_beside_a_bare_network(Network("net", costs=costs))
    assert "Energy and memory surrogates of net" in text
    assert "Energy and memory surrogates of bare" not in text
    assert "energy, mJ" in text
    assert "peak memory, MB" in text
    assert "3.1" in text


def test_elites_stand_with_their_error_where_they_were_measured() -> None:
    elites = (EliteFit(1, "A", 4, 0.052, 0.101), EliteFit(2, "A", 3, 0.011, 0.02))
    text = text_beside_a_bare_network(Network("net", elites=elites))
    assert "Elites of net" in text
    assert "Elites of bare" not in text
    assert "5.2" in text


def test_the_search_stands_beside_its_baselines() -> None:
    contenders = (
        Contender("dense", 9.0, 12.0, 9.5, 1000, 0.25),
        Contender("found by the search", 3.0, 4.0, 3.1, 300, 1.0),
        Contender("random widths", 5.0, 6.0, 5.2, 400, 0.5),
    )
    report = Report(
        title="t",
        simulated=True,
        provenance=PROVENANCE,
        summary=Summary(boards=1, clusters=1),
        networks=(
            Network("net", objective="slo", slo_ms=5.5, contenders=contenders),
            Network(
                "other",
                contenders=tuple(dataclasses.replace(c, slo_share=None) for c in contenders),
            ),
        ),
    )
    text = Elements(rendered(report)).text
    assert "lowered the share of boards beyond the SLO" in text
    assert "lowered the mean" in text
    assert text.count("Within 5.5") == 1
    assert text.count("random widths") == 2
    assert parse_report(dump_report(report), Path("report.json")) == report


def test_artifacts_show_the_clusters_where_they_are_the_fastest_form() -> None:
    text = Elements(rendered(sample_report())).text
    assert "Fastest form for" in text
    assert text.count("1.31 ms") == 2
    assert text.count("tflite int8") == 2
    assert "97.8" in text


def test_next_to_nothing_measured_is_still_a_page() -> None:
    report = Report(
        title="one board",
        simulated=False,
        provenance=PROVENANCE,
        summary=Summary(boards=1, clusters=0),
        networks=(Network("net", surrogates=(SurrogateFit("A", "ridge", 0, 0, None),)),),
        boards=(BoardReport("only", "unknown", latencies=(BoardLatency("net"),)),),
        artifacts=(
            ArtifactReport(
                "ab" * 32,
                "net",
                "onnx",
                "ort",
                "not verified",
                proofs=(Proof("only", None, False),),
            ),
        ),
        timelines=(Timeline("only", states=(StatePoint(0.0),)),),
    )
    elements = Elements(rendered(report))
    assert "No latency of the fleet was measured." in elements.text
    assert elements.count("svg") == 0
    assert "None" not in elements.text
    assert "nan" not in elements.text.split()


def test_an_empty_report_is_still_a_page() -> None:
    report = Report("empty", False, PROVENANCE, Summary(0, 0))
    text = Elements(rendered(report)).text
    assert "No artifact was built." in text
    assert "No board was clustered." in text


def test_single_points_are_drawn() -> None:
    network = Network(
        "net",
        surrogates=(SurrogateFit("A", "ridge", 1, 1, 0.1, (HeldOutPoint(1.0, 1.1),)),),
        search_history=(SearchPoint(1, 2.0),),
        groups=(WidthGroup("g", 1, 0),),
    )
    board = BoardReport(
        "b", "m", anchor_ratio=1.0, latencies=(BoardLatency("net", pruned_ms=1.0, predicted_ms=2),)
    )
    timeline = Timeline("b", (StatePoint(0.0, temp_c=40.0),), (LatencyPoint(0.0, 3.0, "m"),))
    report = Report(
        *("one of each", False, PROVENANCE, Summary(1, 1)),
        networks=(network,),
        boards=(board,),
        timelines=(timeline,),
    )
    assert Elements(rendered(report)).count("svg") == 6


def test_many_boards_are_folded_and_plots_say_so() -> None:
    page = sample_page(200, True)
    text = Elements(page).text
    assert "clusters' representatives: 3 of 200 boards" in text
    assert Elements(page).count("figure") == 1 + 2 * 4 + 3
    folded = [a for tag, a in Elements(page).tags if tag == "details" and "open" not in a]
    assert len(folded) == 3  # the boards, and each network's latencies
    assert "board-200" in text
    assert len(page) < 1_000_000


def test_many_points_become_one_picture() -> None:
    latencies = tuple(LatencyPoint(i, 1 + i % 7 / 100, "m") for i in range(5000))
    board = BoardReport("b", "m")
    report = dataclasses.replace(
        sample_report(), networks=(), boards=(board,), timelines=(Timeline("b", (), latencies),)
    )
    page = rendered(report)
    assert page.count("data:image/png;base64,") == 1
    assert len(page) < 200_000


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ("Aa Aa Bb Bb", "Found as planted"),
        ("Aa Ca Bb Bb", "Finer than planted"),
        ("Aa Aa Ab Bb", "Not as planted: 1 board in"),
        ("Aa Aa Ab Ab", "Not as planted: 2 boards in"),
    ],
)
def test_clusters_against_planted(pairs: str, said: str) -> None:
    boards = tuple(
        BoardReport(f"b{i}", "m", cluster=pair[0], planted=pair[1])
        for i, pair in enumerate(pairs.split())
    )
    report = Report("t", False, PROVENANCE, Summary(4, 2, 2), boards=boards)
    assert said in Elements(rendered(report)).text


def test_slower_is_called_slower() -> None:
    report = Report("t", False, PROVENANCE, Summary(1, 1, speedup=0.5))
    assert report_page.verdict(report) == f"2.0{numbers.TIMES} slower"


def test_a_failed_rendering_leaves_the_old_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(tmp_path, small_report("old"))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    monkeypatch.setattr(report_page.Plots, "widths", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(tmp_path, small_report("new"))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_full_disk_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(tmp_path, small_report("old"))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def no_space(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_report(tmp_path, small_report("new"))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    report = sample_report()
    some = {"networks": report.networks[:1], "timelines": report.timelines[:1]}
    write_report(tmp_path / "here", dataclasses.replace(report, **some))
    script = (
        "import sys; from pathlib import Path; from harness.report import *;"
        "write_report(Path(sys.argv[2]), read_report(Path(sys.argv[1])))"
    )
    here, there = tmp_path / "here" / "report.json", tmp_path / "there"
    subprocess.run([sys.executable, "-c", script, here, there], check=True, timeout=120)
    for name in ("report.json", "report.html"):
        assert (there / name).read_bytes() == here.with_name(name).read_bytes()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (numbers.ms(4.1149), "4.11 ms"),
        (numbers.ms(9.996), "10.0 ms"),
        (numbers.ms(0.01234), "0.0123 ms"),
        (numbers.ms(12345.6), "12 346 ms"),
        (numbers.ms(None), "\u2013"),
        (numbers.percent(0.986), "98.6 %"),
        (numbers.points(0.986, 0.983), "\u22120.3 points"),
        (numbers.points(0.5, 0.5), "0.0 points"),
        (numbers.deviation(1.1, 1.0), "+10.0 %"),
        (numbers.times(2.526), "2.5\u00d7"),
        (numbers.count(12_345_678), "12.3 M"),
        (numbers.count(1234), "1234"),
        (numbers.size(184_320), "184 kB"),
        (numbers.size(12), "12 B"),
        (numbers.error(1.42e-6), "1.4 \u00d7 10⁻⁶"),
        (numbers.error(0.031), "0.031"),
        (numbers.error(0), "0"),
        (numbers.duration(312.4), "5 min 12 s"),
        (numbers.duration(7260), "2 h 1 min"),
        (numbers.duration(0), "0 s"),
        (numbers.moment("2025-11-21T02:55:00.25+00:00"), "2025-11-21 02:55:00 UTC"),
        (numbers.moment("yesterday"), "yesterday"),
        (numbers.plural(1, "board"), "1 board"),
    ],
)
def test_numbers_read_well(said: str, expected: str) -> None:
    assert said.replace(numbers.NARROW, " ") == expected


def test_names_sort_as_people_count() -> None:
    names = ["board-10", "board-9", "a", "board-9b", ""]
    assert sorted(names, key=numbers.natural) == ["", "a", "board-9", "board-9b", "board-10"]
