"""The dashboard, the alerts and their compose services: what they ask for exists, and nobody else is let in."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from promql import groupings, readings, tokens

from app.errors import CODES, CONNECTION_CODES
from app.metrics import OPS, ROUTES, UNMATCHED, Metrics

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "deploy" / "observability"
COMPOSE = (ROOT / "docker-compose.yml").read_text()
LABELS = {
    **{"vae_requests_total": {"route", "status"}, "vae_rejected_total": {"reason"}, "vae_queue_items": {"op"}},
    **{"vae_request_seconds": {"route"}, "vae_queue_wait_seconds": {"op"}, "vae_device_seconds": {"op"}},
    **{"vae_batch_items": {"op"}, "vae_model_info": {"name", "digest", "device", "precision"}},
}
PROMETHEUS_OWN = {"up": set(), "ALERTS": {"alertname", "alertstate", "severity"}}


def metrics() -> dict[str, set[str]]:
    """Return every series name that the service exports, with its labels."""
    text = Metrics().render()[0].decode()
    names = {}
    for family in text_string_to_metric_families(text):
        if family.type == "histogram":
            labels = LABELS.get(family.name, set())
            names |= {family.name + "_bucket": {*labels, "le"}} | {family.name + s: labels for s in ("_sum", "_count")}
        else:
            name = family.name + ("_total" if family.type == "counter" else "")
            names[name] = LABELS.get(name, set())
    return names


def dashboard() -> dict[str, Any]:
    read = json.loads((FILES / "grafana" / "vae-service.json").read_text())
    assert isinstance(read, dict)
    return read


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def alerts() -> dict[str, str]:
    """Return the expression of each alert; a folded one as a single line."""
    text = (FILES / "alerts.yml").read_text()
    rules = re.split(r"^ +- alert: ", text, flags=re.MULTILINE)[1:]
    found = {}
    for rule in rules:
        name, rest = rule.split("\n", 1)
        expr = re.search(r"^ +expr: (?:>-\n((?: {10}.*\n)+)|(.*)\n)", rest, re.MULTILINE)
        assert expr, name
        found[name] = " ".join((expr[1] or expr[2]).split())
    return found


def expressions() -> Iterator[tuple[str, str]]:
    yield from alerts().items()
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for annotation in dashboard()["annotations"]["list"]:
        if "expr" in annotation:
            yield annotation["name"], annotation["expr"]


def test_the_parser_finds_metrics_and_labels_and_nothing_else() -> None:
    text = """histogram_quantile(0.99, sum by (instance, le) (rate(a_bucket{job="vae", op=~"x|by(y)"}[5m] offset 1h)))
              / on (instance) group_left (name) b:c > bool 1e3 and absent(d{} @ start()) or vector(0) - e{f!='{"g"}'}"""
    assert [(one.metric, one.matchers) for one in readings(text)] == [
        ("a_bucket", (("job", "=", "vae"), ("op", "=~", "x|by(y)"))),
        ("b:c", ()),
        ("d", ()),
        ("e", (("f", "!=", '{"g"}'),)),
    ]
    assert groupings(text) == {"instance", "le", "name"}
    with pytest.raises(ValueError, match="not PromQL at 2"):
        tokens("a ; b")


@pytest.mark.parametrize(("where", "expression"), [pytest.param(*pair, id=pair[0]) for pair in expressions()])
def test_every_query_asks_for_metrics_and_labels_that_the_service_exports(where: str, expression: str) -> None:
    known = metrics() | PROMETHEUS_OWN
    found = readings(expression)
    assert found, where
    of_target = {"job", "instance"}
    for reading in found:
        assert reading.metric in known, (where, reading.metric)
        assert {label for label, *_ in reading.matchers} <= known[reading.metric] | of_target, (where, reading)
    assert groupings(expression) <= set().union(of_target, *(known[reading.metric] for reading in found)), where


def test_every_label_value_that_a_query_names_is_one_that_the_service_gives() -> None:
    closed = {"op": set(OPS), "route": {*ROUTES, UNMATCHED}, "reason": {*CODES, *CONNECTION_CODES}}
    statuses = {str(status) for status, _ in CODES.values()} | {"200", "304", "499"}
    for where, expression in expressions():
        for reading in readings(expression):
            for label, sign, value in reading.matchers:
                wanted = value.split("|") if "~" in sign else [value]
                if label in closed:
                    assert set(wanted) <= closed[label], (where, label, value)
                if label == "status":
                    assert all(any(re.fullmatch(one, known) for known in statuses) for one in wanted), (where, value)


def test_every_metric_of_the_service_is_on_the_dashboard() -> None:
    asked = {reading.metric for panel in panels() for t in panel["targets"] for reading in readings(t["expr"])}
    for family in {re.sub(r"_(bucket|sum|count)$", "", name) for name in metrics() if name.startswith("vae_")}:
        assert any(name.startswith(family) for name in asked), family
    assert "process_resident_memory_bytes" in asked


def test_every_panel_has_a_title_a_unit_a_meaning_and_a_place_of_its_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        box = panel["gridPos"]
        cells = {(box["x"] + i, box["y"] + j) for i in range(box["w"]) for j in range(box["h"])}
        assert box["x"] + box["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert {panel["datasource"]["uid"], *(t["datasource"]["uid"] for t in panel["targets"])} == {"${datasource}"}
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(ids)) == len(ids)
    assert len({panel["title"] for panel in panels()}) == len(panels())


def test_every_alert_is_explained_with_what_to_do() -> None:
    page = (ROOT / "docs" / "observability.md").read_text()
    rules = (FILES / "alerts.yml").read_text()
    assert len(alerts()) == rules.count("severity:") == rules.count("summary:") == rules.count("description:")
    assert re.findall(r"^\| `(Vae\w+)` \|", page, re.MULTILINE) == list(alerts())


def promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool (Debian: prometheus)")


@needs_promtool
def test_prometheus_reads_configuration_and_rules() -> None:
    assert "SUCCESS" in promtool("check", "config", "--syntax-only", str(FILES / "prometheus.yml"))
    assert f"{len(alerts())} rules found" in promtool("check", "rules", str(FILES / "alerts.yml"))


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then() -> None:
    assert "SUCCESS" in promtool("test", "rules", "tests/alerts_test.yml")
    cases = (ROOT / "tests" / "alerts_test.yml").read_text()
    assert set(re.findall(r"alertname: (\w+)", cases)) == set(alerts())


def service(name: str) -> str:
    match = re.search(rf"^  {name}:\n((?:    .*\n|\n)+)", COMPOSE, re.MULTILINE)
    assert match, name
    return match[1]


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_the_profile_is_as_careful_as_the_service_and_open_to_this_machine_only(name: str) -> None:
    text = service(name)
    assert "profiles: [observability]" in text
    assert re.search(r"image: [\w/]+:v?\d+\.\d+\.\d+$", text, re.MULTILINE), "a pinned version"
    assert all(port.startswith("127.0.0.1:") for port in re.findall(r'- "([\d.$].*)"', text))
    for line in ("read_only: true", "cap_drop: [ALL]", "security_opt: [no-new-privileges:true]", "mem_limit:", "user:"):
        assert line in text, line
    mounted = re.findall(r"- (\./[^:]+):([^:]+):ro$", text, re.MULTILINE)
    assert len(mounted) == text.count("- ./"), "every file is mounted read-only"
    for source, _ in mounted:
        assert (ROOT / source).is_file(), source


def test_grafana_has_no_account_and_asks_nothing_outside() -> None:
    text = service("grafana")
    for line in (
        "GF_AUTH_ANONYMOUS_ORG_ROLE: Viewer",
        'GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION: "true"',
        'GF_AUTH_BASIC_ENABLED: "false"',
        'GF_PLUGINS_PREINSTALL_DISABLED: "true"',
        'GF_ANALYTICS_REPORTING_ENABLED: "false"',
    ):
        assert line in text
    assert not re.search("password", text.replace("no default password", ""), re.IGNORECASE)


def test_the_scrape_sends_the_key_of_a_file_and_by_default_an_empty_one() -> None:
    config = (FILES / "prometheus.yml").read_text()
    assert "credentials_file: /run/secrets/metrics_key" in config
    default = re.search(r"file: \$\{METRICS_KEY_FILE:-(.+?)\}", COMPOSE)
    assert default
    assert (ROOT / default[1]).read_bytes() == b""


def compose() -> list[str] | None:
    """Return the command of Docker Compose, where it is installed."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and subprocess.run([*command, "version"], capture_output=True).returncode == 0:
            return command
    return None


def test_compose_reads_the_profile_and_starts_it_only_when_asked() -> None:
    command = compose()
    if command is None:
        pytest.skip("no Docker Compose")
    for flags, services in (
        ([], {"vae"}),
        (["--profile", "observability"], {"vae", "prometheus", "grafana"}),
    ):
        done = subprocess.run(
            [*command, *flags, "config", "--format", "json"], cwd=ROOT, capture_output=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert set(json.loads(done.stdout)["services"]) == services
